"""Two threads on a busy machine: a caption takes its share of the time, not a multiple of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "bench_load.py"


def test_two_threads_beside_sixteen_busy_loops(tmp_path):
    out = tmp_path / "load.json"
    command = [sys.executable, BENCHMARK, "--loops", "16", "--threads", "1", "--threads", "2"]
    env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    subprocess.run([*command, "--rounds", "5", "--json", out], check=True, timeout=300, env=env)
    alone, together = json.loads(out.read_text())["rows"]
    assert (alone["n_threads"], together["n_threads"]) == (1, 2)
    assert alone["wall_ms"] > 0
    assert together["ratio"] < 3
