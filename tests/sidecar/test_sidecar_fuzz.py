"""Damaged sidecars by the thousand: each loads or is a ModelError; nothing aborts, hangs or grows.

In a process of its own: an abort there would be one here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from support import sidecar_fuzz
from support.resident import needs_proc


def fuzz(folder, n_files, seed, timeout):
    done = subprocess.run(
        [
            sys.executable,
            str(Path(sidecar_fuzz.__file__)),
            str(folder),
            f"--files={n_files}",
            f"--seed={seed}",
        ],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr[-3000:]}"
    outcomes = json.loads(done.stdout)
    for kind in sidecar_fuzz.KINDS:
        refused, loaded = (outcomes[f"{kind.__name__} {what}"] for what in ("refused", "loaded"))
        assert refused > loaded > 0, kind  # it spoils most files, and not all
    assert outcomes["grown"] < 32 << 20
    return outcomes


@needs_proc
def test_ten_thousand(tmp_path):
    """2.4 s of CPU."""
    outcomes = fuzz(tmp_path, 10_500, seed=1, timeout=300)
    assert outcomes["header refused"] > 2_000


@needs_proc
def test_the_largest_file_that_is_read(tmp_path):
    """16 MiB of empty strings: what costs ggml's reader the most memory a byte."""
    grown = subprocess.run(
        [sys.executable, "-c", LARGEST, str(tmp_path / "atp.gguf")],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert 16 << 20 < int(grown.stdout) < 256 << 20


LARGEST = """
import struct, sys
from atp_cpp import _core as core
from support.resident import peak_rss
from support.sidecar_files import ARR, STR, encode

n = (2**24 - 200) // 8
value = struct.pack("<IQ", STR, n) + bytes(8 * n)
content = encode({"many": (ARR, value)}, {})
assert 2**24 - 400 < len(content) <= 2**24
open(sys.argv[1], "wb").write(content)
del content, value
before = peak_rss()
try:
    core.load_sidecar(sys.argv[1])
except core.ModelError as error:
    assert "not a sidecar" in str(error), error
print(peak_rss() - before)
"""
