"""Closing, leaving and Ctrl-C: the threads that open images end, whatever they are at."""

import contextlib
import gc
import threading
import time

import pytest

from atp_cpp.batch.load import loading
from support.loading_runs import load, n_workers, number, numbered

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def test_closing_ends_the_threads():
    images = load(numbered(100), window=20)
    with contextlib.closing(images):
        next(images)
        assert n_workers() == 2
    assert n_workers() == 0


def test_leaving_a_loop_ends_the_threads():
    for _ in load(numbered(100)):
        break
    gc.collect()
    assert n_workers() == 0


def test_no_thread_before_the_first_image_is_asked_for():
    images = load(numbered(3))
    assert n_workers() == 0
    images.close()


def test_after_closing_nothing_more_is_opened():
    opened = []
    begun, go_on = threading.Event(), threading.Event()

    def prepare(pixels):
        opened.append(number(pixels))
        if number(pixels) == 1:
            begun.set()
            go_on.wait(60)

    images = load(numbered(50), prepare, n_threads=1, window=50)
    next(images)
    assert begun.wait(60)
    closing = threading.Thread(target=images.close)
    closing.start()
    while not loading_is_stopped(images):
        time.sleep(0.001)
    go_on.set()
    closing.join(60)
    assert opened == [0, 1]


def loading_is_stopped(images):
    frame = images.gi_frame
    return frame is None or frame.f_locals["memory"].is_stopped


def test_closing_does_not_wait_for_an_image_that_hangs(monkeypatch):
    monkeypatch.setattr(loading, "_PATIENCE", 0.01)
    begun, go_on = threading.Event(), threading.Event()

    def hangs(pixels):
        if number(pixels):
            begun.set()
            go_on.wait(60)

    images = load(numbered(3), hangs)
    next(images)
    assert begun.wait(60)
    images.close()
    assert n_workers() >= 1
    go_on.set()


def test_closing_wakes_threads_that_wait_for_memory():
    images = load(numbered(30), n_threads=4, window=30, max_bytes=1)
    next(images)
    images.close()
    assert n_workers() == 0


def test_ctrl_c_while_waiting_ends_the_threads(monkeypatch):
    class Interrupted(threading.Event):
        def wait(self, timeout=None):
            raise KeyboardInterrupt

    images = load(numbered(30))
    next(images)
    monkeypatch.setattr(loading.threading, "Event", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(images)
    assert n_workers() == 0


def test_ctrl_c_while_listing_ends_the_threads():
    def listing():
        yield from numbered(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(load(listing()))
    assert n_workers() == 0
