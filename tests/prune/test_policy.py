"""Policies: what the C++ chooses is what its NumPy twin chooses, and the laws hold for anything."""

import numpy as np
import pytest

from atp_cpp import _core as core
from support.invariants import same_policy
from support.policy_twin import bayer, choose, quota, splitmix64

POLICIES = ("none", "random", "grid", "fastv")


def random_case(seed):
    """Arguments of a policy: some images, some already pruned, scores with and without ties."""
    rng = np.random.default_rng(seed)
    grids = [tuple(int(n) for n in rng.integers(1, 13, 2)) for _ in range(rng.integers(1, 5))]
    live, first = [], 0
    for rows, cols in grids:
        n = rows * cols
        alive = rng.choice(n, size=rng.integers(1, n + 1), replace=False)
        live += [first + int(i) for i in np.sort(alive)]
        first += n
    score = rng.random(len(live)).astype(np.float32)
    if seed % 3 == 0:
        score = np.round(score * 3) / 3  # many ties
    if seed % 7 == 0:
        score[:] = 0.25  # nothing but ties
    keep = float(rng.choice([1e-9, 1 / 576, 0.05, 0.25, 1 / 3, 0.5, rng.random() or 1.0, 1.0]))
    return score.tolist(), live, grids, keep, int(rng.integers(0, 2**63))


def test_names():
    assert tuple(core.policy_facts()) == POLICIES
    with pytest.raises(core.PlanError, match="unknown policy 'fast': expected one of none, random"):
        core.Cut(2, "fast")
    with pytest.raises(core.PlanError, match="a name or a callable, got 3"):
        core.Cut(2, 3)


@pytest.mark.parametrize("name", POLICIES)
def test_policy_equals_its_twin_on_random_cases(name):
    for seed in range(300):
        same_policy(name, *random_case(seed))


@pytest.mark.parametrize("name", ["random", "grid", "fastv"])
def test_keep_lists_nest(name):
    """Two cuts in a row keep what the second alone would have kept."""
    for seed in range(40):
        score, live, grids, _, salt = random_case(seed)
        few = same_policy(name, score, live, grids, 0.2, salt)
        many = same_policy(name, score, live, grids, 0.6, salt)
        assert set(few) <= set(many)
        of_many = [score[live.index(i)] for i in many]
        assert same_policy(name, of_many, many, grids, 0.2, salt) == few


def test_quota_rounds_half_up_and_leaves_one():
    cases = [(0.5, 1, 1), (0.5, 3, 2), (0.5, 5, 3), (0.25, 576, 144), (0.001, 576, 1), (1.0, 7, 7)]
    for keep, n, expected in cases:
        assert quota(keep, n) == expected
        score = [0.5] * n
        kept = core.run_policy("fastv", score=score, live=range(n), grids=[(1, n)], keep=keep)
        assert kept == list(range(expected)), "ties go to the lower index"


def test_grid_takes_every_second_row_and_column_at_a_quarter():
    def cells(keep, rows=24, cols=24):
        n = rows * cols
        kept = core.run_policy("grid", score=[], live=range(n), grids=[(rows, cols)], keep=keep)
        return {divmod(i, cols) for i in kept}

    assert cells(0.25) == {(y, x) for y in range(0, 24, 2) for x in range(0, 24, 2)}
    assert cells(0.5) == {(y, x) for y in range(24) for x in range(24) if (y + x) % 2 == 0}
    assert cells(1 / 576) == {(0, 0)}
    assert len(cells(0.3, 1, 50)) == 15, "one row is sampled, too"


def test_the_bayer_matrix_is_the_published_one():
    assert bayer(2).tolist() == [[0, 2], [3, 1]]
    assert bayer(4).tolist() == [[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]


def test_splitmix64_is_the_published_one():
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # first output of seed 0
    assert splitmix64(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4  # the second


def test_random_depends_on_the_seed_only():
    arguments = {"score": [], "live": range(400), "grids": [(20, 20)], "keep": 0.5}
    first = core.run_policy("random", **arguments, seed=1)
    assert first == core.run_policy("random", **arguments, seed=1)
    other = core.run_policy("random", **arguments, seed=2)
    assert 60 < len(set(first) & set(other)) < 140, "two seeds are independent: about 100 of 200"
    some = sorted(set(range(400)) - set(first[:50]))
    assert set(core.run_policy("random", **arguments | {"live": some}, seed=1)) >= set(first[50:])


def test_random_is_fair():
    """Over many seeds every token is kept about as often as any other."""
    counts = np.zeros(64)
    for seed in range(2000):
        counts[
            choose("random", score=[], live=range(64), grids=[(8, 8)], keep=0.25, seed=seed)
        ] += 1
    assert np.abs(counts / 2000 - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 2000)


def test_fastv_takes_the_highest_scores_of_each_image():
    score = [0.1, 0.9, 0.8, 0.2, 0.001, 0.002, 0.004, 0.003]
    kept = core.run_policy("fastv", score=score, live=range(8), grids=[(2, 2), (2, 2)], keep=0.5)
    assert kept == [1, 2, 6, 7], "a quota each, though the second image has lower scores"


def test_fastv_survives_scores_that_are_no_numbers():
    for bad in (np.nan, np.inf, -np.inf):
        score = [0.1, bad, 0.3, bad, 0.2, 0.0]
        kept = core.run_policy("fastv", score=score, live=range(6), grids=[(2, 3)], keep=0.5)
        assert len(kept) == 3
        assert kept == sorted(set(kept))


def test_fastv_wants_a_score_for_each_token():
    with pytest.raises(core.PlanError, match="policy fastv needs 4 scores, got 3"):
        core.run_policy("fastv", score=[1, 2, 3], live=range(4), grids=[(2, 2)], keep=0.5)
