"""Jobs made ahead of time: order, errors and end. (What is in them: test_pipeline.py.)"""

import threading
import time

import pytest

from atp_cpp.batch.encoding import Ahead


def tasks_of(n, made, go=None):
    def task(i):
        if go is not None:
            go.acquire()
        made.append((i, threading.current_thread() is threading.main_thread()))
        return i

    for i in range(n):
        yield lambda i=i: task(i)


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_results_come_in_order(depth):
    made = []
    ahead = Ahead(tasks_of(20, made), depth)
    assert list(ahead) == list(range(20))
    assert made == [(i, depth == 0) for i in range(20)]
    with pytest.raises(StopIteration):
        next(ahead)
    ahead.close()


@pytest.mark.parametrize("depth", [0, 2, 3])
def test_so_many_are_drawn_before_they_are_asked_for(depth):
    drawn = []

    def tasks():
        for i in range(10):
            drawn.append(i)
            yield lambda i=i: i

    ahead = Ahead(tasks(), depth)
    assert drawn == []
    assert next(ahead) == 0
    assert len(drawn) == max(1, depth)
    assert next(ahead) == 1
    assert len(drawn) == max(2, depth + 1)
    ahead.close()


@pytest.mark.parametrize("depth", [0, 2])
def test_what_ends_the_tasks_comes_after_those_before(depth):
    def tasks():
        yield lambda: 1
        yield lambda: 2
        raise OSError("gone")

    ahead = Ahead(tasks(), depth)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(OSError, match="gone"):
        next(ahead)
    ahead.close()


def test_ready_says_whether_there_is_a_wait():
    go = threading.Semaphore(1)
    ahead = Ahead(tasks_of(3, [], go), 2)
    assert ahead.ready()  # nothing is under way: the next call begins it
    assert next(ahead) == 0
    assert not ahead.ready()
    go.release()
    deadline = time.monotonic() + 10
    while not ahead.ready():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    go.release()
    assert list(ahead) == [1, 2]
    ahead.close()


def test_closing_drops_what_has_not_begun():
    go, made = threading.Semaphore(1), []
    ahead = Ahead(tasks_of(9, made, go), 5)
    assert next(ahead) == 0
    threading.Timer(0.05, go.release, (9,)).start()
    ahead.close()
    assert len(made) <= 2
    assert not [t for t in threading.enumerate() if t.name.startswith("atp-encode")]
