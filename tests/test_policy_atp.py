"""Policy atp above the engine: what is read, refused, passed on and shown."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import atp_cpp
from atp_cpp.cli import arguments as cli_args
from atp_cpp.cli.program import main
from atp_cpp.errors import AtpError, PlanError
from atp_cpp.evaluation.evaluate import hash_config, read_plans
from atp_cpp.inspect.picture import dimmed, spatial_mask
from atp_cpp.models import files as model_files
from atp_cpp.options.plan import CutSpec, parse_budget, parse_plan, parse_policy, plan_text, settle
from support.fake_engine import FakeReport

FILES = ("-m", "m.gguf", "--mmproj", "p.gguf")
ATP = CutSpec(0, "atp")
SETTLED = (CutSpec(2, "atp"), CutSpec(5, "atp"))


@pytest.fixture(autouse=True)
def no_demo_sidecar(monkeypatch):
    """Whatever is shipped, only what a test names is there."""
    monkeypatch.setattr(model_files, "DEMO_ATP", "not-shipped.gguf")


@pytest.fixture
def cli(capsys):
    """`cli(*arguments) -> (exit code, stdout, stderr)` in this process."""

    def run(*arguments):
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


# ---- text


@pytest.mark.parametrize(
    ("text", "budget"),
    [("0.25", 0.25), ("1.0", 1.0), (".5", 0.5), ("144", 144), ("2", 2), ("1e-2", 0.01)],
)
def test_a_budget_is_a_fraction_or_a_count(text, budget):
    read = parse_budget(text)
    assert (read, type(read)) == (budget, type(budget))
    cut = parse_policy(f"atp:budget={text}")
    assert cut == CutSpec(0, "atp", budget=budget)
    assert parse_policy(str(cut)) == cut, "the text form comes back"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1", "write 1.0 for all of them, or a count of at least 2"),
        ("0", "a fraction with a decimal point, above 0 and at most 1.0"),
        ("-3", "a whole count of image tokens, at least 2"),
        ("1.5", "at most 1.0"),
        ("0.0", "above 0"),
        ("nan", "above 0"),
        ("inf", "at most 1.0"),
        (str(2**31), "a whole count of image tokens"),
        ("9" * 400, "a whole count of image tokens"),
        ("half", "a fraction such as 0.25, or a count of image tokens such as 144"),
        ("", "a fraction such as 0.25"),
    ],
)
def test_a_budget_that_is_none(text, says, cli, scene):
    with pytest.raises(PlanError) as caught:
        parse_budget(text)
    assert says in str(caught.value)
    code, out, err = cli("caption", scene, *FILES, "--atp", "a.gguf", f"--budget={text}")
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("atp:keep=0.5", "unknown key 'keep'; there are budget"),
        ("atp:after=2", "unknown key 'after'; there are budget"),
        ("atp:", "write for instance atp:budget=0.25"),
        ("atp:budget=", "budget has no value"),
        ("fastv:budget=0.5", "unknown key 'budget'; there are after, keep, seed"),
    ],
)
def test_what_atp_does_not_take(text, says):
    with pytest.raises(PlanError) as caught:
        parse_policy(text)
    assert says in str(caught.value)


def test_specs_that_cannot_be():
    with pytest.raises(PlanError, match="a budget is for policy atp; grid takes keep=FRACTION"):
        CutSpec(2, "grid", 0.5, budget=0.5)
    with pytest.raises(PlanError, match="how much atp keeps is learned, or set by budget"):
        CutSpec(0, "atp", 0.5)
    for budget in (True, "0.5"):
        with pytest.raises(PlanError, match=r"expected a float .* or an int"):
            CutSpec(0, "atp", budget=budget)


def test_a_plan_of_atp_is_one_line():
    assert plan_text([ATP]) == plan_text(SETTLED) == "atp"
    with_budget = settle(parse_plan("atp:budget=0.25"), 8, range(1, 8), (2, 5))
    assert [cut.after for cut in with_budget] == [2, 5]
    assert plan_text(with_budget) == "atp:budget=0.25"
    assert settle(with_budget, 8, range(1, 8), (2, 5)) == with_budget, "settling again is nothing"


def test_a_budget_by_itself_means_atp():
    assert parse_plan(None, budget=0.5) == (CutSpec(0, "atp", budget=0.5),)
    assert parse_plan("atp", budget=0.5) == (CutSpec(0, "atp", budget=0.5),)
    assert parse_plan("atp:budget=99", budget=0.5) == (CutSpec(0, "atp", budget=99),)
    with pytest.raises(PlanError, match=r"a budget is for policy atp, and this plan is fastv:keep"):
        parse_plan("fastv", budget=0.5)
    with pytest.raises(PlanError, match="this plan is none"):
        parse_plan("none", budget=0.5)


@pytest.mark.parametrize(
    ("plan", "atp_cuts", "says"),
    [
        ("atp", (), "policy atp needs a sidecar"),
        (["atp", "grid:after=0,keep=0.5"], (2, 5), "leave grid:keep=0.5,after=0 out"),
        (["atp", "atp:budget=0.5"], (2, 5), "atp and atp:budget=0.5: give atp once"),
    ],
)
def test_plans_that_cannot_be_settled(plan, atp_cuts, says):
    with pytest.raises(PlanError) as caught:
        settle(parse_plan(plan), 8, range(1, 8), atp_cuts)
    assert says in str(caught.value)


# ---- the captioner


def open_captioner(**options):
    return atp_cpp.Captioner("m.gguf", mmproj="p.gguf", **options)


def test_with_a_sidecar_atp_is_the_default(fake_engine, scene):
    engine = fake_engine()
    with open_captioner(atp="a.gguf") as cap:
        assert engine.made[0].atp == "a.gguf"
        assert cap.plan == SETTLED
        caption = cap.caption(scene)
        assert caption.plan == SETTLED
        assert caption.report.n_kept == [8, 4]
        assert engine.made[0].calls[0]["plan"] == [(2, "atp", 1.0, 0), (5, "atp", 1.0, 0)]
        assert cap.caption(scene, policy="none").report.n_kept == []
        assert plan_text(cap.caption(scene, policy="grid:keep=0.5").plan).startswith("grid")


def test_without_a_sidecar_nothing_changes(fake_engine, scene):
    engine = fake_engine()
    with open_captioner() as cap:
        assert (cap.plan, cap.atp, engine.made[0].atp) == ((), None, "")
        assert cap.caption(scene).report.n_kept == []
        with pytest.raises(PlanError, match="policy atp needs a sidecar"):
            cap.caption(scene, policy="atp")
    for options in ({"policy": "atp"}, {"budget": 0.5}, {"policy": "atp", "budget": 9}):
        with pytest.raises(PlanError, match="policy atp needs a sidecar"):
            open_captioner(**options)
    assert len(engine.made) == 1, "said before a model is loaded"


def test_the_budget_reaches_the_engine(fake_engine, scene):
    engine = fake_engine()
    for options in (
        {"budget": 0.5},
        {"policy": "atp", "budget": 0.5},
        {"policy": "atp:budget=0.5"},
    ):
        with open_captioner(atp="a.gguf", **options) as cap:
            caption = cap.caption(scene)
            assert plan_text(caption.plan) == "atp:budget=0.5"
            assert set(engine.made[-1].budgets) == {0.5}
            cap.caption(scene, policy="atp:budget=12")
            assert engine.made[-1].budgets[-1] == 12
    with pytest.raises(PlanError, match="cannot be met"):
        open_captioner(atp="a.gguf", budget=0.1)
    assert engine.made[-1].closed


def test_another_policy_beside_a_sidecar(fake_engine):
    fake_engine()
    with open_captioner(atp="a.gguf", policy="none") as cap:
        assert plan_text(cap.plan) == "none"
    with open_captioner(atp="a.gguf", policy="fastv") as cap:
        assert plan_text(cap.plan) == "fastv:keep=0.5,after=2"


def test_the_demo_model_brings_its_sidecar(fake_engine, monkeypatch, tmp_path):
    engine = fake_engine()
    for name in (model_files.DEMO_MODEL, model_files.DEMO_MMPROJ, "shipped.gguf"):
        (tmp_path / name).touch()
    monkeypatch.setattr(model_files, "DEMO_DIR", tmp_path)
    with atp_cpp.Captioner() as cap:
        assert (cap.atp, cap.plan) == (None, ())
    monkeypatch.setattr(model_files, "DEMO_ATP", "shipped.gguf")
    with atp_cpp.Captioner() as cap:
        assert (cap.atp, cap.plan) == (tmp_path / "shipped.gguf", SETTLED)
    with atp_cpp.Captioner(policy="none") as cap:
        assert cap.plan == ()
    with open_captioner() as cap:
        assert cap.atp is None, "not for another model"
    assert engine.made[1].atp == str(tmp_path / "shipped.gguf")


# ---- the command line


def test_rows_say_what_atp_did(cli, fake_engine, scene):
    fake_engine()
    code, out, _ = cli("caption", scene, *FILES, "--atp", "a.gguf", "--budget", "0.5", "--json")
    row = json.loads(out)
    assert code == 0
    assert (row["atp"], row["policy"]) == ("a.gguf", "atp:budget=0.5")
    assert row["thresholds"] == [[0.5, 0.75, 0.0], [0.5, 0.75, 0.125]]
    assert (row["n_kept"], row["tokens_mean"]) == ([8, 4], (2 * 16 + 3 * 8 + 3 * 4) / 8)


def test_a_row_with_an_infinite_offset_is_json(cli, fake_engine, scene, monkeypatch):
    engine = fake_engine()
    report = engine._report

    def infinite(self, n_images, plan):
        return replace(report(self, n_images, plan), thresholds=[(0.5, 0.5, math.inf)])

    monkeypatch.setattr(engine, "_report", infinite)
    _, out, _ = cli("caption", scene, *FILES, "--atp", "a.gguf", "--json")
    assert json.loads(out, parse_constant=pytest.fail)["thresholds"] == [[0.5, 0.5, None]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--budget", "0.5"), "--budget needs the model's ATP sidecar; give it with --atp FILE"),
        (("--policy", "atp"), "--policy atp needs the model's ATP sidecar"),
        (("--policy", "atp:budget=0.5"), "--policy atp needs the model's ATP sidecar"),
        (("--atp", "a.gguf", "--keep", "0.5"), "policy atp takes --budget"),
        (("--atp", "a.gguf", "--policy", "atp", "--keep", "0.5"), "policy atp takes --budget"),
        (("--atp", "a.gguf", "--policy", "grid", "--budget", "0.5"), "a budget is for policy atp"),
        (("--atp", "a.gguf", "--budget", "0.2"), "a budget of 0.2 cannot be met"),
        (("--atp", "a.gguf", "--policy", "atp", "--policy", "grid"), "stands alone; leave grid"),
    ],
)
@pytest.mark.parametrize("command", ["caption", "explain"])
def test_refused_in_one_line(cli, fake_engine, scene, tmp_path, command, arguments, says):
    fake_engine()
    rest = ("--out", tmp_path / "kept.png") if command == "explain" else ()
    code, out, err = cli(command, scene, *rest, *FILES, *arguments)
    assert (code, out) == (2, "")
    assert says in err and err.count("\n") == 1


def test_explain_draws_atp_without_being_asked(cli, fake_engine, scene, tmp_path):
    fake_engine()
    out = tmp_path / "kept.png"
    code, _, err = cli("explain", scene, "--out", out, *FILES, "--atp", "a.gguf")
    assert code == 0 and out.is_file()
    assert "kept 8 after layer 2, 4 after layer 5" in err


def questions(folder, scene):
    path = folder / "q.jsonl"
    line = {"image": scene.name, "question": "What?", "answer": "A red circle", "kind": "k"}
    path.write_text(json.dumps(line) + "\n")
    return path


def test_eval_compares_budgets(cli, fake_engine, scene, tmp_path):
    engine = fake_engine()
    out = tmp_path / "out.json"
    (tmp_path / "a.gguf").write_bytes(b"sidecar")
    files = [tmp_path / name for name in ("m.gguf", "p.gguf")]
    for file in files:
        file.touch()
    code, table, err = cli(
        "eval", questions(tmp_path, scene), "-m", files[0], "--mmproj", files[1],
        "--atp", tmp_path / "a.gguf", "--compare", "atp:budget=0.5", "--compare", "none",
        "--compare", "atp", "--out", out,
    )  # fmt: skip
    assert code == 0, err
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        "`atp:budget=0.5`", "`none`", "`atp`",
    ]  # fmt: skip
    where_from = json.loads(out.read_text())["provenance"]
    assert where_from["atp"] == "a.gguf" and len(where_from["atp_sha256"]) == 64
    assert where_from["plans"] == ["atp:budget=0.5", "none", "atp"]
    assert [len(call["plan"]) for call in engine.made[0].calls] == [2, 0, 2]
    code, _, err = cli("eval", tmp_path / "q.jsonl", *FILES, "--compare", "none", "--budget", "0.5")
    assert code == 2 and "not both" in err


def test_another_sidecar_is_another_configuration():
    sampling = atp_cpp.SamplingConfig()
    hashes = {hash_config("a", "b", sampling, atp_sha256=sha) for sha in ("", "c", "d")}
    assert len(hashes) == 3


def test_the_same_plan_twice_is_refused(fake_engine):
    fake_engine()
    with open_captioner(atp="a.gguf") as cap:
        with pytest.raises(AtpError, match="two alternatives are the same plan: atp"):
            read_plans(["atp", "none", "atp"], cap)
        assert len(read_plans(["atp", "atp:budget=0.5", "atp:budget=8"], cap)) == 3


def test_a_file_name_without_a_letter(cli, scene):
    """As from a variable of the shell that is not set."""
    for files in (["--atp", ""], ["-m", "", "--mmproj", "b"], ["-m", "a", "--mmproj", ""]):
        code, out, err = cli("caption", scene, *files)
        assert (code, out) == (2, "")
        assert "expected the name of a GGUF file, got an empty text" in err


def test_help_names_atp(capsys):
    with pytest.raises(SystemExit):
        main(["caption", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--atp GGUF" in text and "--budget F|N" in text
    assert cli_args.POLICIES[-1] == "atp"


# ---- pictures


def test_what_the_grid_alone_kept_is_blue():
    report = FakeReport(
        n_image_tokens=20, n_prompt=20, n_decoded=1, n_kept=[6], tokens_mean=6.0,
        kept=[[0, 1, 2, 3, 4, 19]], grids=[(2, 2), (4, 4)], kept_spatial=[[1, 4, 19]],
    )  # fmt: skip
    assert spatial_mask(report, 0, 0).tolist() == [[False, True], [False, False]]
    assert np.argwhere(spatial_mask(report, 0, 1)).tolist() == [[0, 0], [3, 3]]
    pixels = np.full((8, 8, 3), 200, np.uint8)
    mask = np.array([[True, True], [False, True]])
    tinted = np.array([[True, False], [False, False]])
    out = dimmed(pixels, mask, tinted)
    red, green, blue = out[0, 0].tolist()
    assert blue > 200 > green > red, "tinted"
    assert (out[:4, 4:] == 200).all() and (out[4:, 4:] == 200).all(), "kept"
    assert (out[4:, :4] == 50).all(), "dropped"
    old = FakeReport(4, 4, 1, [1], 1.0, [[0]], [(2, 2)])
    assert not spatial_mask(old, 0).any(), "other policies have no such list"
