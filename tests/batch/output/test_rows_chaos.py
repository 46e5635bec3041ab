"""Rows and texts after ``kill -9`` at random moments are those of an undisturbed run."""

import json
import os

import pytest

from support import rows_writer

N_IMAGES, N_KILLS = 120, 50


def contents(folder):
    """File name -> content; of rows the sorted lines, since their order is free."""
    files = {
        path.name: path.read_bytes().replace(os.fsencode(folder), b".") for path in folder.iterdir()
    }
    return {**files, "rows.jsonl": sorted(files["rows.jsonl"].splitlines())}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fifty_kills_cost_nothing(tmp_path):
    calm, torn = tmp_path / "calm", tmp_path / "torn"
    calm.mkdir()
    torn.mkdir()
    rows_writer.run(calm / "rows.jsonl", calm, N_IMAGES, existing="append")

    ran = rows_writer.program("chaos", torn, N_IMAGES, N_KILLS)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["n_killed"] >= N_KILLS / 5  # others ended before they were killed
    assert told["n_torn"] > 0
    assert len(set(told["n_rows"])) > 5  # killed at many places

    expected, got = contents(calm), contents(torn)
    assert len(expected["rows.jsonl"]) == N_IMAGES * 3 // 2
    assert got["rows.jsonl"] == expected["rows.jsonl"]
    leftovers = {name for name in got if name.startswith(".")}
    assert {name: data for name, data in got.items() if name not in leftovers} == expected
