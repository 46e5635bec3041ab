"""Evaluation: what counts as right, what a run writes, and how it goes on after a break."""

import json

import pytest
from PIL import Image

from atp_cpp.cli.program import main
from atp_cpp.errors import AtpError
from atp_cpp.evaluation.evaluate import (
    EvalRow,
    Question,
    load_questions,
    normal_form,
)
from atp_cpp.evaluation.report import blind_accuracy, markdown, summarise


@pytest.fixture
def files(tmp_path):
    """Model files that can be hashed; the fake engine reads neither."""
    (tmp_path / "m.gguf").write_bytes(b"model")
    (tmp_path / "p.gguf").write_bytes(b"projector")
    return ("-m", tmp_path / "m.gguf", "--mmproj", tmp_path / "p.gguf")


@pytest.fixture
def questions(tmp_path):
    """Four questions on two images; the fake engine always answers "A red circle."."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    rows = [
        {"image": "a.png", "question": "What?", "answer": "a red circle", "kind": "what"},
        {"image": "a.png", "question": "Which?", "answer": "a  RED circle. ", "kind": "what"},
        {"image": "b.png", "question": "Where?", "answer": "left", "kind": "where"},
        {"image": "b.png", "question": "What?", "answer": "red circle", "kind": "what"},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = main(["eval", *map(str, arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ("red", " Red. "), ("a red circle", "A  red\ncircle"), ("yes", "YES."), ("2", "2 ."),
        ("Straße", "STRASSE"), ("", " . "),
    ],
)  # fmt: skip
def test_same_answers(answer, same):
    assert normal_form(answer) == normal_form(same)


@pytest.mark.parametrize(
    ("answer", "other"), [("red", "a red"), ("2", "3"), ("3.5", "35"), ("red", "red!"), ("a", "")]
)
def test_different_answers(answer, other):
    assert normal_form(answer) != normal_form(other)


BLIND = "atp-cpp: without an image, the words of the questions alone give 0.0 %\n"


def test_table_and_json(fake_engine, files, questions, tmp_path, run):
    fake_engine()
    out = tmp_path / "out.json"
    code, table, err = run(
        questions, *files, "--out", out, "--compare", "none", "--compare",
        "fastv:keep=0.5,after=4", "--compare", "grid:keep=0.5,after=0.25+grid:keep=0.25,after=4",
    )  # fmt: skip
    assert (code, err) == (0, BLIND)
    lines = table.splitlines()
    assert (
        lines[0]
        == "| plan | n | all [95 %] | what | where | tokens (layer mean) | KV MiB | prefill ms |"
    )
    assert lines[2] == "| `none` | 4 | 50.0 % [15.0, 85.0] | 66.7 % | 0.0 % | 16.0 | 0.00 | 2.0 |"
    assert lines[3].startswith("| `fastv:keep=0.5,after=4` | 4 | 50.0 % [15.0, 85.0] |")
    assert " | 12.0 | " in lines[3]
    # 2 layers with 16, 2 with 8, 4 with 4
    assert "`grid:keep=0.5,after=2+grid:keep=0.25,after=4`" in lines[4]
    assert " | 8.0 | " in lines[4]

    saved = json.loads(out.read_text())
    where = saved["provenance"]
    assert where["model"] == "m.gguf"
    assert where["model_sha256"] == (
        "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4"
    )
    assert (where["n_questions"], where["complete"], where["seed"]) == (4, True, 0)
    assert {"atp_cpp", "python", "time", "devices", "questions_sha256"} <= set(where)
    assert [r["plan"] for r in saved["results"]] == where["plans"]
    assert saved["results"][0]["n_by_kind"] == {"what": 3, "where": 1}
    assert saved["results"][0]["accuracy"] == 0.5


def test_plans_alternate_within_a_question(fake_engine, files, questions, run):
    engine = fake_engine()
    run(questions, *files, "--compare", "none", "--compare", "grid:after=4")
    (made,) = engine.made
    assert [len(call["plan"]) for call in made.calls] == [0, 1] * 4
    assert all(call["temp"] == 0.0 for call in made.calls)
    assert [call["prompt"].split("\n")[1].split()[0] for call in made.calls[::2]] == [
        "What?", "Which?", "Where?", "What?",
    ]  # fmt: skip


def test_policy_is_one_plan(fake_engine, files, questions, run):
    fake_engine()
    _, table, _ = run(questions, *files, "--policy", "fastv", "--policy", "grid:after=4",
                      "--keep", "0.25")  # fmt: skip
    assert "`fastv:keep=0.25,after=2+grid:keep=0.25,after=4`" in table
    assert len(table.splitlines()) == 3


def test_sample_is_seeded_and_in_file_order(questions):
    path = questions
    chosen = [[q.question for q in load_questions(path, limit=2, seed=s)] for s in range(12)]
    assert chosen[3] == [q.question for q in load_questions(path, limit=2, seed=3)]
    assert len({tuple(c) for c in chosen}) > 2
    whole = load_questions(path)
    for seed in range(12):
        picked = load_questions(path, limit=3, seed=seed)
        assert [whole.index(q) for q in picked] == sorted(whole.index(q) for q in picked)
    assert load_questions(path, limit=99) == whole


def test_goes_on_where_it_was_interrupted(fake_engine, files, questions, tmp_path, run):
    rows = tmp_path / "rows.jsonl"
    arguments = (
        questions,
        *files,
        "--rows",
        rows,
        "--compare",
        "none",
        "--compare",
        "grid:after=4",
    )
    fake_engine(interrupt_at=(3, 1))
    code, table, err = run(*arguments)
    assert code == 130
    assert "interrupted after 3 of 8 replies" in err
    assert "| `none` | 2 |" in table
    assert len(rows.read_text().splitlines()) == 3

    engine = fake_engine()
    code, table, _ = run(*arguments)
    assert code == 0
    assert len(engine.made[0].calls) == 5
    assert "| `none` | 4 | 50.0 %" in table
    assert len(rows.read_text().splitlines()) == 8

    engine = fake_engine()
    assert run(*arguments)[1] == table
    assert engine.made[0].calls == []


def test_corrected_labels_judge_earlier_replies_anew(fake_engine, files, questions, tmp_path, run):
    rows = tmp_path / "rows.jsonl"
    fake_engine()
    assert "| `none` | 4 | 50.0 % [15.0, 85.0] |" in run(questions, *files, "--rows", rows)[1]
    questions.write_text(questions.read_text().replace('"left"', '"A red circle"'))
    engine = fake_engine()
    assert "| `none` | 4 | 75.0 % [30.1, 95.4] |" in run(questions, *files, "--rows", rows)[1]
    assert engine.made[0].calls == []


def test_other_settings_are_asked_again(fake_engine, files, questions, tmp_path, run):
    rows = tmp_path / "rows.jsonl"
    fake_engine()
    run(questions, *files, "--rows", rows)
    engine = fake_engine()
    run(questions, *files, "--rows", rows, "-n", 5)
    assert len(engine.made[0].calls) == 4
    files[1].write_bytes(b"another model")
    engine = fake_engine()
    run(questions, *files, "--rows", rows)
    assert len(engine.made[0].calls) == 4


def test_torn_last_line_is_mended(fake_engine, files, questions, tmp_path, run):
    rows = tmp_path / "rows.jsonl"
    fake_engine()
    run(questions, *files, "--rows", rows)
    whole = rows.read_text()
    rows.write_text(whole[:-40])
    engine = fake_engine()
    code, _, _ = run(questions, *files, "--rows", rows)
    assert code == 0
    assert len(engine.made[0].calls) == 1
    assert rows.read_text().splitlines() == whole.splitlines()


def test_a_file_of_something_else_is_not_appended_to(fake_engine, files, questions, tmp_path, run):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"a": 1}\n')
    fake_engine()
    code, out, err = run(questions, *files, "--rows", rows)
    assert (code, out) == (2, "")
    assert f"{rows}:1: not a row of an evaluation" in err
    assert rows.read_text() == '{"a": 1}\n'


def test_a_missing_image_is_named_and_counts_as_wrong(fake_engine, files, questions, tmp_path, run):
    (tmp_path / "b.png").unlink()
    rows = tmp_path / "rows.jsonl"
    fake_engine()
    code, table, err = run(questions, *files, "--rows", rows)
    assert code == 1
    assert "| `none` | 4 (2 failed) | 50.0 % [15.0, 85.0] | 66.7 % | 0.0 % | 16.0 |" in table
    assert err.count("b.png: no such file") == 2
    assert "2 of 4 replies failed" in err
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    engine = fake_engine()
    code, _, _ = run(questions, *files, "--rows", rows)
    assert code == 0
    assert len(engine.made[0].calls) == 2  # failed rows are asked again


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no question"),
        ("{\n", "questions.jsonl:1: not JSON"),
        ("[1]\n", "questions.jsonl:1: expected an object"),
        ('\n{"image": "a", "question": "q"}\n', "questions.jsonl:2: expected text in answer"),
        ('{"image": "a", "question": "q", "answer": 2}\n', "expected text in answer"),
    ],
)
def test_bad_question_files(tmp_path, content, says):
    path = tmp_path / "questions.jsonl"
    path.write_text(content)
    with pytest.raises(AtpError, match=says):
        load_questions(path)
    with pytest.raises(AtpError, match="cannot be read"):
        load_questions(tmp_path / "none.jsonl")


def test_kind_may_be_left_out(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"image": "a", "question": "q", "answer": "x"}\n')
    assert load_questions(path)[0].kind == "all"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--compare", "none", "--policy", "grid"), "not both"),
        (("--compare", "fast"), "unknown policy 'fast'"),
        (("--compare", "grid:after=2", "--compare", "grid:after=0.25"), "same plan"),
        (("--compare", "grid:after=99"), "this model has 8 layers"),
        (("--out", "/no/such/dir/out.json"), "is not a directory"),
        (("--rows", "/no/such/dir/rows.jsonl"), "is not a directory"),
    ],
)
def test_usage_errors(fake_engine, files, questions, run, arguments, says):
    engine = fake_engine()
    code, out, err = run(questions, *files, *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert all(made.calls == [] for made in engine.made)


def test_notes_without_a_line_end_are_left_alone(fake_engine, files, questions, tmp_path, run):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("my notes")
    fake_engine()
    code, out, err = run(questions, *files, "--rows", rows)
    assert (code, out) == (2, "")
    assert f"{rows}:1: not a row of an evaluation" in err
    assert rows.read_text() == "my notes"


def test_a_reply_that_lacks_only_its_line_end_is_kept(fake_engine, files, questions, tmp_path, run):
    rows = tmp_path / "rows.jsonl"
    fake_engine()
    run(questions, *files, "--rows", rows)
    whole = rows.read_bytes()
    rows.write_bytes(whole[:-1])
    engine = fake_engine()
    assert run(questions, *files, "--rows", rows)[0] == 0
    assert engine.made[0].calls == []
    assert rows.read_bytes() == whole


def test_medians_and_means():
    def row(correct, tokens, ms, kind="k"):
        return EvalRow("p", "i", "q", "a", kind, "h", correct=correct, tokens_mean=tokens,
                       kv_bytes=2**20, t_prefill=ms)  # fmt: skip

    (summary,) = summarise([row(True, 10, 1.0), row(False, 20, 2.0), row(True, 30, 90.0)])
    assert summary.accuracy == pytest.approx(2 / 3)
    assert (summary.tokens_mean, summary.t_prefill) == (20, 2.0)
    assert "| `p` | 3 | 66.7 % [20.8, 93.9] | 66.7 % | 20.0 | 1.00 | 2.0 |" in markdown([summary])


def test_real_run(tiny_files, questions, run):
    model, mmproj = tiny_files
    code, table, err = run(
        questions, "-m", model, "--mmproj", mmproj, "-c", 512, "-t", 1, "-n", 2,
        "--compare", "none",
        "--compare", "grid:keep=0.25,after=4",
    )  # fmt: skip
    assert (code, err) == (0, BLIND)
    none, grid = table.splitlines()[2:]
    assert " | 64.0 | " in none
    assert " | 40.0 | " in grid


def test_blind_accuracy_guesses_from_other_images():
    def ask(image, question, answer, kind="k"):
        return Question(image, question, answer, kind)

    always_yes = [ask(str(i), "Is it?", "yes") for i in range(3)]
    assert blind_accuracy(always_yes) == 1
    alone = [ask("a", "What is it?", "cat"), ask("a", "What is it?", "cat")]
    assert blind_accuracy(alone) == 0  # no other image to guess from
    by_kind = [ask("a", "one?", "1"), ask("b", "two?", "1"), ask("c", "three?", "2")]
    assert blind_accuracy(by_kind) == pytest.approx(2 / 3)
    assert blind_accuracy([]) == 0
