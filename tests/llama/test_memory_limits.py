"""Too little memory: a caption, or one clear error of at most 500 characters, and no signal."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from atp_cpp import _core as core

resource = pytest.importorskip("resource", reason="limits of address space are Unix's")
if not sys.platform.startswith("linux"):
    pytest.skip("only Linux holds a process to RLIMIT_AS", allow_module_level=True)

IMAGES = Path(__file__).resolve().parents[2] / "examples"
DEMO = Path(core.__file__).parent / "demo" / "atp-demo.gguf"
MIB = 1 << 20

CAPTION = """
import sys
from atp_cpp.cli.program import main
sys.exit(main(["caption", {image!r}, "--threads", {threads!r}]))
"""
MANY = """
import sys
import atp_cpp
try:
    cap = atp_cpp.Captioner(n_threads=2)
    rows = list(cap.caption_many([{image!r}] * 6, batch_size=4))
except atp_cpp.AtpError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
for row in rows:
    print(row.caption if row.status == "ok" else "")
    if row.status != "ok":
        print(row.error, file=sys.stderr)
sys.exit(0 if all(row.status == "ok" for row in rows) else 2)
"""


def run_with(mib, script, **names):
    """A process that may take so many MiB of address space."""
    return subprocess.run(
        [sys.executable, "-c", script.format(image=str(IMAGES / "scene.png"), **names)],
        capture_output=True,
        text=True,
        timeout=120,
        env=dict(os.environ, GGML_NO_BACKTRACE="1"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (mib * MIB, mib * MIB)),
    )


def check_end(mib, done):
    """It captioned (True), or said what is missing (False)."""
    said = f"{mib} MiB, exit code {done.returncode}: {done.stdout}{done.stderr}"
    assert done.returncode in (0, 2), said
    assert all(len(line) <= 500 for line in done.stderr.splitlines()), said
    if done.returncode == 0:
        assert "circle" in done.stdout, said
        return True
    reason = done.stderr.splitlines()[-1]
    assert "memory" in reason, said
    assert "raise" in reason or "use a smaller" in reason, said
    assert "are needed, and this process" not in reason or "MALLOC_ARENA_MAX=1" in reason, said
    return False


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["2", "6"])
def test_a_caption_or_one_error_at_every_limit(threads):
    made = [check_end(mib, run_with(mib, CAPTION, threads=threads)) for mib in range(300, 1550, 50)]
    assert not made[0]
    assert made[-1]


@pytest.mark.slow
def test_many_captions_or_errors_at_every_limit():
    made = [check_end(mib, run_with(mib, MANY)) for mib in range(600, 1600, 100)]
    assert not made[0]
    assert made[-1]


def test_refused_before_anything_is_loaded():
    done = run_with(400, CAPTION, threads="2")
    assert done.returncode == 2
    (error,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert "too little memory for atp-demo.gguf: it needs about" in error
    assert "this process may take" in error
    assert "raise its limit (ulimit -v), or use a smaller model or fewer threads" in error


def gguf_with_a_hole(path, architecture, rows):
    """A file whose header names one Q4_0 tensor [32768, rows]; its values take no disk."""

    def text(value):
        return len(value).to_bytes(8, "little") + value.encode()

    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    header += text("general.architecture") + struct.pack("<I", 8) + text(architecture)
    header += text("v.weight") + struct.pack("<IQQIQ", 2, 32768, rows, 2, 0)
    path.write_bytes(header)
    os.truncate(path, (len(header) + 31) // 32 * 32 + rows * 32768 // 32 * 18)


def test_a_projector_larger_than_the_machine_is_refused(tmp_path):
    with open("/proc/meminfo") as lines:
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    machine = (sizes["MemTotal"] + sizes["SwapTotal"]) * 1024
    mmproj = tmp_path / ("a-long-name" * 20 + ".gguf")
    gguf_with_a_hole(mmproj, "clip", machine // (32768 // 32 * 18) + 1)
    with pytest.raises(core.ModelError, match="does not fit: it needs at least") as error:
        core.Engine(str(DEMO), str(mmproj), n_threads=1)
    assert "and this machine has" in str(error.value)
    assert "use a smaller model" in str(error.value)
    assert len(str(error.value)) <= 500


def test_a_projector_that_fits_goes_on_to_its_real_fault(tmp_path):
    mmproj = tmp_path / "small.gguf"
    gguf_with_a_hole(mmproj, "clip", 1)
    with pytest.raises(core.ModelError, match="does not work with"):
        core.Engine(str(DEMO), str(mmproj), n_threads=1)
