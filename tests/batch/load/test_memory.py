"""Shares of memory: within the limit together, the oldest picture never waits, no deadlock."""

import random
import threading

import pytest

from atp_cpp.batch.load.memory import Memory, Stopped


def in_thread(work, *args):
    """Starts work; the event is set once it has returned."""
    done = threading.Event()

    def run():
        work(*args)
        done.set()

    threading.Thread(target=run, daemon=True).start()
    return done


def test_shares_within_the_limit_are_given_at_once():
    memory = Memory(100)
    memory.take(0, 40)
    memory.take(1, 60)
    assert memory.is_full
    memory.book(1, 10)
    assert not memory.is_full


def test_the_oldest_gets_its_share_however_large():
    memory = Memory(100)
    memory.take(0, 1000)
    memory.hand_on()
    memory.take(1, 5000)


def test_a_younger_one_waits_until_there_is_room():
    memory = Memory(100)
    memory.take(0, 80)
    done = in_thread(memory.take, 1, 30)
    assert not done.wait(0.05)
    memory.book(0, 70)
    assert done.wait(60)


def test_a_younger_one_waits_until_it_is_the_oldest():
    memory = Memory(100)
    memory.book(0, 80)
    memory.book(2, 80)
    done = in_thread(memory.take, 1, 500)
    assert not done.wait(0.05)
    memory.hand_on()
    assert done.wait(60)


def test_a_share_is_taken_anew_and_not_added():
    memory = Memory(100)
    memory.book(0, 1)
    memory.take(1, 60)
    memory.take(1, 99)  # 159 together would have waited
    assert memory.is_full


def test_what_was_handed_on_is_forgotten():
    memory = Memory(100)
    memory.take(0, 100)
    memory.hand_on()
    assert not memory.is_full
    memory.book(0, 100)
    memory.take(0, 100)
    assert not memory.is_full


def test_stop_wakes_who_waits_and_refuses_who_comes():
    memory = Memory(100)
    memory.take(0, 100)
    caught = []

    def wait():
        try:
            memory.take(1, 1)
        except Stopped:
            caught.append(1)

    done = in_thread(wait)
    assert not done.wait(0.05)
    memory.stop()
    assert done.wait(60)
    assert caught
    assert memory.is_stopped
    with pytest.raises(Stopped):
        memory.take(0, 1)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_any_mixture_ends_and_stays_within_the_limit(n_threads):
    n, limit = 200, 100
    rng = random.Random(n_threads)
    sizes = [(rng.randrange(30), rng.choice([5, 20, 60, 150])) for _ in range(n)]
    memory, todo = Memory(limit), iter(range(n))
    lock, done = threading.Lock(), [threading.Event() for _ in range(n)]
    held, excess, head = {}, [], [0]

    def note(index, n_bytes):
        with lock:
            held[index] = n_bytes
            young = sum(size for at, size in held.items() if at > head[0])
            if young > limit:
                excess.append(dict(held))

    def work():
        while (index := next(todo, None)) is not None:
            for n_bytes in sizes[index]:
                memory.take(index, n_bytes)
                note(index, n_bytes)
            note(index, 1)
            memory.book(index, 1)
            done[index].set()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for index in range(n):
        assert done[index].wait(60)
        with lock:
            held.pop(index)
            head[0] = index + 1
        memory.hand_on()
    assert not excess
