"""How much memory stays behind: read from /proc, where there is one."""

import gc
from pathlib import Path

import pytest

PAGE = 4096


def rss():
    """Resident bytes of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def peak_rss():
    """The most that this process ever had, in bytes (getrusage would also count its parent's)."""
    (line,) = (
        text
        for text in Path("/proc/self/status").read_text().splitlines()
        if text.startswith("VmHWM:")
    )
    return int(line.split()[1]) * 1024


def children():
    """The status files of this process's children, whichever thread started them."""
    pids = (path.read_text().split() for path in Path("/proc/self/task").glob("*/children"))
    return [f"/proc/{pid}/status" for found in pids for pid in found]


def growth(work, n_warm_up=3, n=10):
    """Bytes that each call leaves behind.

    The least of three runs: a leak shows in each, a heap that finds its size does not.
    """
    for _ in range(n_warm_up):
        work()
    per_call = []
    for _ in range(3):
        before = rss()
        for _ in range(n):
            work()
        per_call.append((rss() - before) / n)
    return min(per_call)


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc"
)
