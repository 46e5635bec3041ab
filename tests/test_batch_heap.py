"""Freed memory goes back to the system where it can be asked for."""

import ctypes
import os
import threading

import pytest

from atp_cpp.batch import heap


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


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_elsewhere_it_does_nothing(monkeypatch, error):
    def none(name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", none)
    heap.give_back()
    assert heap._malloc_trim() is None
