"""Large blocks of the engine ask Linux for huge pages (third_party/patches/0018)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own: what other tests left mapped says nothing about this engine.
PROGRAM = """
from atp_cpp import Captioner
with Captioner(n_threads=1) as captioner:
    captioner.caption("{image}")
    print(open("/proc/self/smaps").read())
"""
IMAGE = Path(__file__).resolve().parents[2] / "examples" / "easy.png"
MB = 1 << 20


def asked_for(smaps):
    """Sizes in bytes of the anonymous mappings that ask for huge pages ("hg")."""
    sizes, size, is_file = [], 0, False
    for line in smaps.splitlines():
        if mapping := re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ (\d+)", line):
            is_file = mapping[1] != "0"
        elif line.startswith("Size:"):
            size = int(line.split()[1]) * 1024
        elif line.startswith("VmFlags:") and "hg" in line.split() and not is_file:
            sizes.append(size)
    return sizes


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a system without huge pages"
)
def test_weights_and_activations_ask_for_them():
    program = PROGRAM.format(image=IMAGE)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    sizes = asked_for(run.stdout)
    encoder = IMAGE.parents[1] / "python/atp_cpp/demo/mmproj-atp-demo.gguf"
    assert max(sizes, default=0) >= 4 * MB
    assert sum(sizes) >= 4 * MB + encoder.stat().st_size
