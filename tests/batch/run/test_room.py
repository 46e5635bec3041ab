"""Bytes to cells: sizes, what is reserved, what is learnt, what is refused."""

import logging

import psutil
import pytest

from atp_cpp.batch.run.room import Room, default_budget, parse_size
from atp_cpp.errors import AtpError, StageError
from support.fake_batch_engine import FakeCaches, FakeSequence


class Engine(FakeCaches):
    def __init__(self, **steer):
        super().__init__()
        vars(self).update(steer)

    @property
    def bytes_reserved(self):
        return sum(n * size for n, size in zip(self.reserved, self.sizes, strict=True))


def sequence(*bound):
    return FakeSequence(needs=bound, bound=bound)


def room_of(engine, bound, *, n_parallel=4, budget=10**6):
    room = Room(engine, n_parallel=n_parallel, budget=budget)
    room.open(sequence(*bound), 10)
    return room


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("1000", 1000), ("512M", 512 << 20), ("2G", 2 << 30), ("1.5GiB", 3 << 29), ("64k", 1 << 16),
        (" 3 mb ", 3 << 20), ("1T", 1 << 40), ("7B", 7),
    ],
)  # fmt: skip
def test_sizes(text, n):
    assert parse_size(text) == n


@pytest.mark.parametrize(
    "text", ["", "G", "-1G", "0", "0.1", "2X", "1e9", "2 G B", "1,5G", "²", "nan"]
)
def test_what_is_no_size(text):
    with pytest.raises(AtpError, match="such as 512M or 2G"):
        parse_size(text)


def test_the_budget_is_half_of_what_is_free():
    free = psutil.virtual_memory().available
    assert 0.3 * free < default_budget() < 0.7 * free


def test_where_all_fit_just_that_is_reserved():
    engine = Engine(sizes=(8, 4), n_shared=2)
    room_of(engine, (30, 10))
    assert engine.reserved == [4 * 32, 4 * 12]
    room = room_of(engine, (30, 10), budget=4 * 32 * 8 + 4 * 12 * 4)
    assert room.n_cells == engine.reserved == [4 * 32, 4 * 12]


def test_a_smaller_budget_holds_fewer():
    engine = Engine(sizes=(8, 4), n_shared=2)
    room_of(engine, (30, 10), budget=4 * 32 * 8 + 4 * 12 * 4 - 1)
    assert engine.reserved == [3 * 32, 3 * 12]


def test_whole_steps_count_against_the_budget():
    engine = Engine(cell_step=64, n_shared=0)
    room_of(engine, (65,), budget=3 * 64 * 8)
    assert engine.reserved == [192]  # 130 of two captions, rounded up
    room_of(engine, (65,), budget=3 * 64 * 8 - 1)
    assert engine.reserved == [128]


def test_where_the_bound_of_one_does_not_fit_the_budget_is_divided():
    engine = Engine(sizes=(8, 8, 4), n_shared=0)
    room_of(engine, (60, 40, 20), budget=400)
    assert 300 <= engine.bytes_reserved <= 400
    assert engine.reserved[0] > engine.reserved[1] > engine.reserved[2] > 0


def test_a_budget_below_one_step_is_refused_with_what_it_takes():
    with pytest.raises(StageError) as caught:
        room_of(Engine(n_shared=0), (1 << 20,), budget=10)
    assert str(caught.value) == (
        "expected a caption whose caches fit into the budget of 10 bytes, got one that needs up to "
        "8.0 MiB; raise --kv-budget, or lower -n or --ctx-size"
    )


def test_it_learns_what_atp_keeps():
    """All of them bounded at 100 cells, of which the second stage really takes 10."""
    engine = Engine(sizes=(8, 8), n_shared=0)
    room = room_of(engine, (100, 100), n_parallel=8, budget=3 * 1600)
    assert engine.reserved == [300, 300]
    for i in range(8):
        assert not room.better, i
        room.learn([100, 10])
    assert room.better
    room.divide()
    assert not room.better
    assert engine.reserved == [500, 52]


def test_the_mean_and_the_largest_count():
    """k - 1 of the mean, and one of the largest, wherever among them it came."""
    for largest_at in range(8):
        engine = Engine(sizes=(8,), n_shared=0)
        room = room_of(engine, (100,), n_parallel=8, budget=300 * 8)
        for i in range(8):
            room.learn([60 if i == largest_at else 28])
        room.divide()
        assert engine.reserved == [60 + 7 * 32]  # the mean is (60 + 7 * 28) / 8 = 32


def test_after_a_division_without_memory_it_begins_anew():
    engine = Engine(sizes=(8, 8), n_shared=0)
    room = room_of(engine, (100, 100), n_parallel=8, budget=3 * 1600)
    for _ in range(8):
        room.learn([100, 10])
    engine.no_memory_above = 0
    room.divide()
    assert room.n_cells == []
    engine.no_memory_above = None
    room.open(sequence(20, 20), 10)
    assert engine.reserved == room.n_cells != []


def test_nothing_is_divided_for_less_than_a_quarter_more():
    engine = Engine(sizes=(8, 8), n_shared=0)
    room = room_of(engine, (100, 100), n_parallel=8, budget=3 * 1600)
    for _ in range(100):
        room.learn([100, 90])
        assert not room.better


def test_nothing_is_divided_where_all_fit():
    room = room_of(Engine(sizes=(8, 8), n_shared=0), (100, 100))
    for _ in range(100):
        room.learn([100, 1])
        assert not room.better


def test_looks_are_rarer_and_rarer():
    engine = Engine(sizes=(8, 8), n_shared=0)
    room = room_of(engine, (100, 100), n_parallel=8, budget=3 * 1600)
    better = []
    for i in range(1, 300):
        room.learn([100, 10])
        if room.better:
            better.append(i)
            room.better = False
    assert better == [8, 16, 32, 64, 128, 256]


def test_one_large_caption_still_fits_after_the_division():
    engine = Engine(sizes=(8, 8), n_shared=0)
    room = room_of(engine, (100, 100), n_parallel=8, budget=3 * 1600)
    for _ in range(7):
        room.learn([100, 10])
    room.learn([100, 100])
    room.divide()
    assert engine.reserved[1] >= 100
    assert engine.bytes_reserved <= 3 * 1600


def test_it_grows_for_a_larger_caption():
    engine = Engine(n_shared=0)
    room = room_of(engine, (10,), n_parallel=1)
    room.grow([25])
    assert engine.reserved == [28]
    with pytest.raises(StageError, match="the budget of"):
        room.grow([10**6])
    assert engine.reserved == [28]


def test_it_grows_stage_by_stage_where_only_a_bound_is_known():
    """Budget for 100 + 20 cells, bounds (100, 100): what the second really takes shows later."""
    engine = Engine(sizes=(8, 8), n_shared=0)
    room = room_of(engine, (40, 40), n_parallel=1, budget=120 * 8)
    room.grow([100, 100])
    assert engine.reserved == [100, 20]
    with pytest.raises(StageError, match="--kv-budget"):
        room.grow([100, 24])


def test_shared_text_in_the_way_is_forgotten_once():
    engine = Engine()
    room = room_of(engine, (8,), n_parallel=1)
    room.learn([8])
    engine.shared = True
    room.grow([10])
    assert not engine.shared
    with pytest.raises(StageError, match="no room for"):
        room.grow([10])


def test_short_memory_halves_the_caches(caplog):
    caplog.set_level(logging.WARNING, "atp_cpp")
    engine = Engine(n_shared=0, no_memory_above=1000)
    room_of(engine, (40,), n_parallel=8)
    assert engine.reserved == [80]
    assert "no memory for caches of 2560 bytes; going on with caches of 1280 bytes" in caplog.text


def test_no_memory_at_all_is_the_jobs_error():
    with pytest.raises(StageError, match="no memory for caches of 160 bytes"):
        room_of(Engine(n_shared=0, no_memory_above=10), (40,))
