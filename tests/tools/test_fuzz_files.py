"""The fuzzer: what it finds it names, a worker that ends costs one case, a second run goes on."""

import json
import os
import sys

import pytest

import fuzz_files
from fuzzing.cases import PAIRS, ROUND, Cases


@pytest.fixture
def fuzz(monkeypatch, tmp_path):
    """`fuzz(*arguments) -> (exit code, state)`."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    out = tmp_path / "out.json"

    def run(*arguments):
        words = ["fuzz_files.py", "--out", out, "--folder", tmp_path / "files", *arguments]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        return fuzz_files.main(), json.loads(out.read_text())

    return run


def test_what_is_found_is_named_and_the_run_goes_on(fuzz, monkeypatch, capsys):
    monkeypatch.setattr(fuzz_files, "WORKER", "support.fuzz_worker")
    monkeypatch.setattr(fuzz_files, "HANG_S", 1.0)
    code, state = fuzz("--cases", 9)
    assert code == 1
    assert (state["next"], state["children"]) == (9, 3)
    assert state["counts"]["toy"] == {"taken": 7}
    found = {key: value["cases"] for key, value in state["findings"].items()}
    assert found == {
        f"{ROUND[3]} | SIGABRT | x.c:7: GGML_ASSERT(all is well) failed": [3],
        f"{ROUND[5]} | hang | ": [5],
        "toy | class | TypeError": [6],
    }
    assert "| all | 9 | 7 | 0 |" in capsys.readouterr().out


def test_a_round_of_real_cases_and_one_more(fuzz):
    n = len(ROUND)
    code, state = fuzz("--cases", n)
    assert (code, state["findings"]) == (0, {})
    code, state = fuzz("--cases", 2 * n)
    assert (code, state["next"]) == (0, 2 * n)
    assert sum(sum(row.values()) for row in state["counts"].values()) == 2 * n
    assert set(state["counts"]) == set(ROUND)
    with pytest.raises(SystemExit, match="is of seed 0; name another file"):
        fuzz("--seed", 1)


def test_a_case_follows_from_its_number(tmp_path):
    made = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        cases, files = Cases(folder, 7), []
        for number in range(5):
            cases.case(ROUND.index("model") + number * len(ROUND))
            files.append(cases.damaged.read_bytes())
        cases.captioner.close()
        made.append(files)
    assert made[0] == made[1]
    whole = {(tmp_path / "one" / f"{arch}.gguf").read_bytes() for arch in PAIRS}
    assert len(set(made[0]) - whole) >= 3  # a rare damage leaves the file as it is
