"""Freed memory goes back to the system where it can be asked for."""

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import atp_cpp
from atp_cpp.batch.load import heap


@pytest.fixture(autouse=True)
def looked_up_anew():
    heap._malloc_trim.cache_clear()
    yield
    heap._malloc_trim.cache_clear()


def resident():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library")
def test_what_a_thread_freed_is_given_back():
    n, size = 1000, 100_000
    kept = []

    def work():
        blocks = [bytes(size) + b"x" for _ in range(n)]
        kept.append(blocks[-1])  # the end of the thread's memory stays in use

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    before = resident()
    heap.give_back()
    assert resident() < before - n * size // 2


FREED = """
import sys
from atp_cpp.batch import heap

def resident():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * 4096

if sys.argv[1] == "apart":
    heap.large_blocks_apart()
bytes(4_000_000)  # freed at once: malloc keeps the next blocks up to this size
before = resident()
pairs = [[b"x" * 2_000_000, b"x" * 200_000] for _ in range(8)]
for pair in pairs:
    del pair[0]
print(resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_large_blocks_go_back_at_once():
    def grown(how):
        path = {**os.environ, "PYTHONPATH": str(Path(atp_cpp.__file__).parents[1])}
        command = [sys.executable, "-c", FREED, how]
        return int(subprocess.run(command, env=path, capture_output=True, check=True).stdout)

    assert grown("apart") < 5_000_000 < 15_000_000 < grown("as it is")


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_elsewhere_it_does_nothing(monkeypatch, error):
    def none(name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", none)
    heap.give_back()
    heap.large_blocks_apart()
    assert heap._malloc_trim() is None
