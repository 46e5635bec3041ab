"""The ATP modules: what the C++ computes is what its NumPy twin computes, and the budget's laws."""

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest

from atp_cpp import _core as core
from support import atp_twin
from support.atp_cases import NORMS, random_case
from support.random_sidecar import KEEP_ALL, random_sidecar

N_CASES = 400


def weights_of(sidecar):
    """The sidecar as the engine has it, through a file."""
    with tempfile.TemporaryDirectory() as folder:
        return core.load_sidecar(str(sidecar.write_gguf(Path(folder) / "atp.gguf")))


def feasible_budget(sidecar, module, arguments, rng):
    """(spent, budget): image tokens times layers so far, and a budget that can be met."""
    n_tokens = sum(r * c for r, c in arguments["grids"])
    earlier = sidecar.cuts[module - 1] if module else sidecar.cuts[0]
    spent = float(n_tokens * earlier + len(arguments["live"]) * (sidecar.cuts[module] - earlier))
    least = spent + len(arguments["grids"]) * (sidecar.n_layer - sidecar.cuts[module])
    most = spent + len(arguments["live"]) * (sidecar.n_layer - sidecar.cuts[module])
    mean = (least + rng.random() * (most - least)) / sidecar.n_layer
    if rng.integers(2):
        return spent, math.ceil(mean)
    return spent, min(1.0, mean / n_tokens)


def same_choice(sidecar, module, arguments):
    """C++ and twin decide alike; returns what they decided."""
    measured = core.atp_run(weights_of(sidecar), module, **arguments)
    expected = atp_twin.choose(sidecar, module, **arguments)
    assert measured["kept"] == expected["kept"]
    assert measured["spatial"] == expected["spatial"]
    assert measured["thresholds"] == pytest.approx(expected["thresholds"], rel=0, abs=1e-9)
    kept = measured["kept"]
    assert kept == sorted(set(kept)) and set(kept) <= set(arguments["live"])
    images = {im for im, _, _ in atp_twin.cells(kept, arguments["grids"])}
    assert images == set(range(len(arguments["grids"]))), "at least one token of each image"
    return measured


def test_a_module_equals_its_twin_on_random_cases():
    shares = []
    for seed in range(N_CASES):
        sidecar, module, arguments = random_case(seed)
        kept = same_choice(sidecar, module, arguments)["kept"]
        shares.append(len(kept) / len(arguments["live"]))
    assert min(shares) < 0.1 and max(shares) == 1.0 and 0.2 < np.mean(shares) < 0.8


def test_a_module_with_a_budget_equals_its_twin_on_random_cases():
    for seed in range(N_CASES):
        sidecar, module, arguments = random_case(seed)
        rng = np.random.default_rng(seed)
        spent, budget = feasible_budget(sidecar, module, arguments, rng)
        same_choice(sidecar, module, arguments | {"spent": spent, "budget": budget})


def test_normalise():
    assert core.atp_normalise([1.0, 3.0], "none") == [1.0, 3.0]
    assert core.atp_normalise([1.0, 3.0], "relative") == pytest.approx([1 / 3, 3 / 5])
    assert core.atp_normalise([1.0, 3.0, 2.0], "minmax") == [0.0, 1.0, 0.5]
    assert core.atp_normalise([2.0, 2.0], "relative") == [0.5, 0.5], "the mean is one half"
    assert core.atp_normalise([0.0, 0.0], "relative") == [0.5, 0.5]
    assert core.atp_normalise([7.0, 7.0], "minmax") == [0.5, 0.5]
    assert all(core.atp_normalise([], norm) == [] for norm in NORMS)


def test_features_do_not_depend_on_order_and_have_one_width():
    assert core.atp_features([1.0, 3.0, 2.0], 3) == [3.0, 2.0, 1.0]
    assert core.atp_features([1.0, 3.0], 5) == [3.0, 2.5, 2.0, 1.5, 1.0]
    assert core.atp_features([4.0], 3) == [4.0, 4.0, 4.0]
    rng = np.random.default_rng(0)
    for n in (1, 2, 63, 64, 65, 576):
        s = rng.random(n)
        expected = atp_twin.features(s, 64)
        assert core.atp_features(s.tolist(), 64) == pytest.approx(expected, rel=0, abs=1e-12)


def test_the_grids_are_not_nested():
    """docs/guide/policies.md tells these counts: each stride has its own centred offset."""
    strides = (2, 3, 4, 6, 8, 12)
    scores = np.array(
        [core.atp_spatial_score(*divmod(i, 24), grid=(24, 24), strides=strides) for i in range(576)]
    )
    kept = [int((scores > 1 - 3 / stride**2 - 1e-9).sum()) for stride in strides]
    assert kept == [232, 120, 61, 29, 13, 4]


def test_spatial_scores_of_the_paper_grid():
    """24 x 24: the share of cells at or above each level is the rate that the level stands for."""
    strides = (2, 3, 4, 6, 8, 12)
    score = np.array(
        [
            core.atp_spatial_score(y, x, grid=(24, 24), strides=strides)
            for y in range(24)
            for x in range(24)
        ]
    )
    for stride in strides:
        first = (23 % stride) // 2
        on_grid = {(y, x) for y in range(first, 24, stride) for x in range(first, 24, stride)}
        assert len(on_grid) == (24 // stride) ** 2
        level = 1 - 3 / stride**2
        assert all(score[24 * y + x] >= level for y, x in on_grid)
    assert sorted(set(score)) == [-math.inf, *(1 - 3 / s**2 for s in strides)]
    assert core.atp_spatial_score(0, 0, grid=(1, 1), strides=strides) == 1 - 3 / 144
    assert core.atp_spatial_score(0, 0, grid=(1, 5), strides=(4,)) == 1 - 3 / 16
    assert core.atp_spatial_score(0, 1, grid=(1, 4), strides=(4,)) == 1 - 3 / 16, "centred"


def flat_sidecar(theta_r=0.0, theta_s=0.0, **fields):
    """Thresholds that depend on nothing: sigmoid of these."""
    return random_sidecar(theta_r_bias=theta_r, theta_s_bias=theta_s, **fields)


def plain_case(n=8, **arguments):
    rng = np.random.default_rng(n)
    return {
        "self_sum": rng.random(n * n).tolist(),
        "cross": rng.random(n * n).tolist(),
        "live": list(range(n * n)),
        "grids": [(n, n)],
    } | arguments


def test_a_threshold_of_one_half_keeps_what_is_above_the_average():
    case = plain_case()
    out = core.atp_run(weights_of(flat_sidecar(rule="redundant", score="cross")), 0, **case)
    cross = np.array(case["cross"])
    assert out["kept"] == np.flatnonzero(cross > cross.mean()).tolist()
    assert out["thresholds"] == (0.5, 0.5, 0.0)
    assert out["spatial"] == []


def test_a_score_at_its_threshold_is_not_above_it():
    flat = plain_case(4, self_sum=[1.0] * 16, cross=[1.0] * 16)  # all of them 0.5, and so theta_r
    sidecar = flat_sidecar(rule="redundant", divisor="rows_all")
    assert core.atp_run(weights_of(sidecar), 0, **flat)["kept"] == [0], "the guard's one"


def test_a_spatial_threshold_picks_a_sampling_rate():
    for theta, stride in ((0.7, 4), (0.5, 3), (0.1, 2)):
        logit = math.log(theta / (1 - theta))
        sidecar = flat_sidecar(theta_s=logit, rule="spatial", strides=(2, 3, 4))
        out = core.atp_run(weights_of(sidecar), 0, **plain_case(24))
        scores = [core.atp_spatial_score(*divmod(i, 24), grid=(24, 24), strides=(2, 3, 4))
                  for i in range(576)]  # fmt: skip
        assert out["kept"] == [i for i in range(576) if scores[i] >= 1 - 3 / stride**2]
        assert out["spatial"] == out["kept"]


def test_the_union_is_both_rules():
    case = plain_case()
    kept = {
        rule: set(core.atp_run(weights_of(flat_sidecar(rule=rule)), 0, **case)["kept"])
        for rule in ("union", "redundant", "spatial")
    }
    assert kept["union"] == kept["redundant"] | kept["spatial"]
    assert kept["spatial"] - kept["redundant"] and kept["redundant"] - kept["spatial"]
    tinted = core.atp_run(weights_of(flat_sidecar()), 0, **case)["spatial"]
    assert set(tinted) == kept["spatial"] - kept["redundant"], "what the grid alone let through"


def test_the_guard_keeps_the_best_token_of_each_image():
    closed = flat_sidecar(theta_r=40.0, theta_s=40.0)
    case = plain_case(
        self_sum=[0.0] * 10, cross=[1.0, 3.0, 2.0, 3.0, 0, 0, 0, 0, 0, 1.0], live=list(range(10)),
        grids=[(2, 2), (2, 3)],
    )  # fmt: skip
    for rule, expected in (("redundant", [1, 9]), ("spatial", [0, 4])):
        sidecar = flat_sidecar(theta_r=40.0, theta_s=40.0, rule=rule, strides=(2,))
        assert same_choice(sidecar, 0, case)["kept"] == expected, "ties go to the lower index"
    assert len(same_choice(closed, 0, case)["kept"]) == 2
    nowhere = flat_sidecar(theta_s=40.0, rule="spatial", strides=(4,))
    lonely = case | {"live": [1, 2, 5, 6], "self_sum": [0.0] * 4, "cross": [0.0, 1.0, 0.0, 1.0]}
    assert same_choice(nowhere, 0, lonely)["kept"] == [1, 5], "on no grid: the first"


def test_thresholds_that_let_all_through_keep_all():
    case = plain_case()
    out = core.atp_run(weights_of(flat_sidecar(theta_r=KEEP_ALL)), 0, **case)
    assert out["kept"] == case["live"]


class Prompt:
    """All modules of a sidecar in turn, on scores drawn anew at each cut."""

    def __init__(self, sidecar, grids, seed):
        self.sidecar, self.grids, self.seed = sidecar, grids, seed
        self.n_tokens = sum(r * c for r, c in grids)
        self.least = (
            self.n_tokens * sidecar.cuts[0] + len(grids) * (sidecar.n_layer - sidecar.cuts[0])
        ) / sidecar.n_layer

    def mean(self, budget):
        """Live image tokens, mean over layers; and the tokens alive at the last module."""
        rng = np.random.default_rng(self.seed)
        weights = weights_of(self.sidecar)
        live, spent, done = list(range(self.n_tokens)), 0.0, 0
        for module, after in enumerate(self.sidecar.cuts):
            spent, done, before = spent + (after - done) * len(live), after, len(live)
            scores = rng.exponential(1.0, (2, self.n_tokens))[:, live]
            arguments = {"self_sum": scores[0].tolist(), "cross": scores[1].tolist(), "live": live}
            live = core.atp_run(
                weights, module, **arguments, grids=self.grids, spent=spent, budget=budget
            )["kept"]
        spent += (self.sidecar.n_layer - done) * len(live)
        return spent / self.sidecar.n_layer, before == len(live)


def random_prompt(seed):
    rng = np.random.default_rng([5, seed])
    n_layer = int(rng.choice([8, 12, 32]))
    n_cuts = int(rng.integers(1, 5))
    cuts = tuple(np.sort(rng.choice(range(1, n_layer), n_cuts, replace=False)))
    kept = np.sort(rng.choice([rng.uniform(0.01, 1, n_cuts), rng.uniform(0.5, 1, n_cuts)]))[::-1]
    sidecar = random_sidecar(seed, n_layer=n_layer, cuts=cuts, kept=tuple(kept))
    grids = [tuple(int(n) for n in rng.integers(2, 12, 2)) for _ in range(rng.integers(1, 4))]
    return Prompt(sidecar, grids, seed)


def test_the_mean_never_exceeds_the_budget_and_meets_it():
    for seed in range(150):
        prompt = random_prompt(seed)
        rng = np.random.default_rng(seed)
        tokens = prompt.least + rng.random() * (prompt.n_tokens - prompt.least)
        budget = tokens / prompt.n_tokens if seed % 2 else math.ceil(tokens)
        wanted = budget * prompt.n_tokens if seed % 2 else min(budget, prompt.n_tokens)
        mean, nothing_dropped_last = prompt.mean(budget)
        assert mean <= wanted + 1e-6
        span = prompt.sidecar.n_layer - (
            prompt.sidecar.cuts[0] if nothing_dropped_last else prompt.sidecar.cuts[-1]
        )
        # one token more in the last span is too much; or, if none could be had there, in all spans
        assert mean > wanted - span / prompt.sidecar.n_layer - 1e-6


def test_the_whole_budget_keeps_everything():
    for seed in range(40):
        prompt = random_prompt(seed)
        for budget in (1.0, prompt.n_tokens, 10 * prompt.n_tokens):
            assert prompt.mean(budget)[0] == prompt.n_tokens


def test_a_count_that_is_whole_but_for_rounding_is_that_count():
    """(0.58 * 25 * 8 - 25 * 2) / 6 is 11, and 10.999999999999998 in float64."""
    sidecar = random_sidecar(cuts=(2,), n_layer=8)
    out = core.atp_run(weights_of(sidecar), 0, **plain_case(5), spent=50.0, budget=0.58)
    assert len(out["kept"]) == 11


def test_the_least_budget_keeps_one_token_of_each_image():
    for seed in range(40):
        prompt = random_prompt(seed)
        mean, _ = prompt.mean(prompt.least / prompt.n_tokens)
        assert mean == pytest.approx(prompt.least)


def test_more_budget_keeps_what_less_did():
    """At one module the keep lists nest, and the thresholds fall."""
    for seed in range(60):
        sidecar, module, arguments = random_case(seed)
        weights = weights_of(sidecar)
        spent = float(sidecar.cuts[module] * len(arguments["grids"]))  # a prompt pruned before
        kept, offset, sizes = set(), -math.inf, set()
        n_tokens = sum(r * c for r, c in arguments["grids"])
        for budget in range(len(arguments["grids"]), n_tokens + 2):
            out = core.atp_run(weights, module, **arguments, spent=spent, budget=budget)
            assert kept <= set(out["kept"]) and offset <= out["thresholds"][2]
            kept, offset = set(out["kept"]), out["thresholds"][2]
            sizes.add(len(kept))
        assert kept == set(arguments["live"])
        assert len(sizes) > 1 or len(kept) == len(arguments["grids"])


def test_an_impossible_budget_is_refused_with_the_least_possible():
    sidecar = random_sidecar(cuts=(2, 5), n_layer=8)
    arguments = plain_case(grids=[(8, 8)])
    for budget in (16, 0.25):
        with pytest.raises(core.PlanError) as caught:
            core.atp_run(weights_of(sidecar), 0, **arguments, spent=128.0, budget=budget)
        assert "the least possible is a mean of 16.75 (0.2617 of them)" in str(caught.value)
        assert "cannot be met: all 64 live up to the cut after 2 of 8 layers" in str(caught.value)
    kept = core.atp_run(weights_of(sidecar), 0, **arguments, spent=128.0, budget=17)["kept"]
    assert len(kept) == 1


@pytest.mark.parametrize("budget", [0, -3, 0.0, -0.5, 1.5, float("nan"), float("inf")])
def test_budgets_that_are_none(budget):
    weights = weights_of(random_sidecar())
    with pytest.raises(core.PlanError, match="a fraction above 0 and at most 1, or a count"):
        core.atp_plan(weights, n_layer=8, legal_cuts=range(1, 8), budget=budget)
    for nothing in ("half", True, [0.5]):
        with pytest.raises(core.PlanError, match=r"a float .* or an int"):
            core.atp_plan(weights, n_layer=8, legal_cuts=range(1, 8), budget=nothing)


def test_the_plan_of_a_sidecar():
    weights = weights_of(random_sidecar(cuts=(2, 5)))
    cuts = core.atp_plan(weights, n_layer=8, legal_cuts=range(1, 8))
    assert [(cut.after, cut.policy, cut.keep) for cut in cuts] == [(2, "atp", 1.0), (5, "atp", 1.0)]
    with pytest.raises(core.PlanError, match="trained to cut after 5 of 8 layers, where this mod"):
        core.atp_plan(weights, n_layer=8, legal_cuts=[1, 2, 3])
    with pytest.raises(core.PlanError, match="cuts first after 2 of 8 layers, which alone cost"):
        core.atp_plan(weights, n_layer=8, legal_cuts=range(1, 8), budget=0.25)
