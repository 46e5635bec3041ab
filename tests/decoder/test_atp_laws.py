"""Policy atp in the staged decoder: the laws of all policies, and that it decides as its twin."""

import numpy as np
import pytest

from atp_cpp import _core as core
from support.atp_modules import Modules, grids_of
from support.invariants import (
    layer_mean,
    nothing_leaks,
    pruned_equals_masked,
    run_once,
    together_equals_alone,
    uncut_plan,
)
from support.random_sidecar import KEEP_ALL
from support.rig import prompt

N_LAYER = 8
PROMPTS = {
    "image in the middle": (5, (8, 8), 11),
    "image first, not square": ((3, 12), 5),
    "two images": (3, (4, 6), 4, (5, 5), 9),
    "images side by side": (2, (3, 3), (4, 4), 2),
    "one token": (3, (1, 1), 2),
    "question over several ubatches": (3, (6, 6), 150),
}


@pytest.fixture
def modules(tmp_path):
    """`modules(rig, **fields) -> Modules`."""

    def make(rig, **fields):
        return Modules(rig, tmp_path, **fields)

    return make


@pytest.mark.parametrize("parts", PROMPTS.values(), ids=PROMPTS)
def test_pruned_equals_masked(make_rig, arch, modules, parts):
    rig = make_rig(arch)
    staged = rig.staged()
    seq = prompt(rig, staged, *parts)
    kept = pruned_equals_masked(rig, staged, seq, modules(rig).plan())
    assert len(kept[-1]) < seq.n_image_tokens or seq.n_image_tokens == 1


def test_pruned_equals_masked_for_every_kind_of_cache(make_rig, arch, precision, modules):
    rig = make_rig(arch, precision)
    staged = rig.staged()
    seq = prompt(rig, staged, 5, (8, 8), 4, (3, 4), 11)
    kept = pruned_equals_masked(rig, staged, seq, modules(rig).plan(0.75))
    assert len(kept[-1]) < seq.n_image_tokens


@pytest.mark.parametrize("parts", PROMPTS.values(), ids=PROMPTS)
def test_the_engine_decides_as_the_twin_does(make_rig, arch, modules, parts):
    rig = make_rig(arch)
    staged = rig.staged()
    mine = modules(rig)
    staged.set_plan(mine.plan())
    mine.twin(staged.prefill(prompt(rig, staged, *parts)), grids_of(parts))


@pytest.mark.parametrize("budget", [0.75, 50, 1.0, 1000])
def test_a_budget_is_kept_and_met(make_rig, arch, modules, budget):
    rig = make_rig(arch)
    staged = rig.staged()
    mine = modules(rig, divisor="rows_all")
    staged.set_plan(mine.plan(budget))
    parts = (3, (4, 6), 4, (7, 6), 9)
    out = staged.prefill(prompt(rig, staged, *parts))
    mine.twin(out, grids_of(parts), budget)
    mean = layer_mean(mine.sidecar.cuts, [len(kept) for kept in out["kept"]], 66, N_LAYER)
    wanted = min(66, budget * 66 if isinstance(budget, float) else budget)
    assert wanted - 1 < mean <= wanted


def test_thresholds_that_keep_everything_equal_no_policy(make_rig, arch, modules):
    """To the bit: scoring changes nothing of what is computed."""
    rig = make_rig(arch)
    staged = rig.staged()
    seq = prompt(rig, staged, 5, (8, 8), 4, (3, 4), 11)
    staged.set_plan([])
    whole = run_once(staged, seq)
    for fields, budget in (({"theta_r_bias": KEEP_ALL}, None), ({}, 1.0)):
        staged.remove(0)
        mine = modules(rig, **fields)
        staged.set_plan(mine.plan(budget))
        assert np.array_equal(run_once(staged, seq), whole)
    staged.remove(0)
    staged.set_plan(uncut_plan(mine.sidecar.cuts))
    assert np.array_equal(run_once(staged, seq), whole)


def test_nothing_leaks_and_a_prompt_again_gives_the_same(make_rig, arch, modules):
    rig = make_rig(arch)
    staged = rig.staged()
    plan = modules(rig).plan()
    first = prompt(rig, staged, 5, (8, 8), 11, seed=1)
    second = prompt(rig, staged, 7, (5, 5), 3, (2, 3), 4, seed=2)
    nothing_leaks(rig, staged, plan, first, second)
    nothing_leaks(rig, staged, plan, second, first)
    assert np.array_equal(run_once(staged, first), run_once(staged, first))


def test_text_alone_is_not_pruned(make_rig, arch, modules):
    rig = make_rig(arch)
    staged = rig.staged()
    seq = prompt(rig, staged, 21)
    whole = run_once(staged, seq)
    staged.remove(0)
    mine = modules(rig)
    staged.set_plan(mine.plan(0.75))
    assert np.array_equal(run_once(staged, seq), whole)
    out = staged.prefill(seq)
    assert out["kept"] == [[]] * len(mine.sidecar.cuts)
    assert out["thresholds"] == []


def test_no_question_behind_the_image(make_rig, modules):
    rig = make_rig("llama")
    staged = rig.staged()
    staged.set_plan(modules(rig).plan())
    with pytest.raises(core.PlanError, match="after 2 layers needs text after the image"):
        staged.prefill(prompt(rig, staged, 5, (4, 4)))
    assert len(staged.prefill(prompt(rig, staged, 5, (4, 4), 1))["kept"]) == 2


def test_a_budget_below_what_this_prompt_costs(make_rig, modules):
    rig = make_rig("llama")
    staged = rig.staged()
    staged.set_plan(modules(rig).plan(20))
    small, large = prompt(rig, staged, 3, (5, 5), 3), prompt(rig, staged, 3, (10, 10), 3)
    expected = run_once(staged, small)
    reason = r"a budget of 20 image tokens cannot be met: .* a mean of 25.75 \(0.2575 of them\)"
    with pytest.raises(core.PlanError, match=reason):
        staged.prefill(large)
    assert np.array_equal(run_once(staged, small), expected)


def test_modules_behind_no_full_attention_are_refused(make_rig, modules):
    rig = make_rig("gemma3")
    with pytest.raises(core.PlanError, match="layers 0 to 1 hold no full-attention layer to score"):
        rig.staged().set_plan(modules(rig, cuts=(2, 4)).plan())


def test_a_callable_may_see_what_atp_sees(make_rig, arch):
    rig = make_rig(arch)
    staged = rig.staged()
    seen = []

    def watch(tokens):
        seen.append(tokens)
        return tokens["index"][::2]

    after = 4
    staged.set_plan([core.Cut(1, "grid", 0.5), core.Cut(after, watch, needs="atp")])
    seq = prompt(rig, staged, 5, (8, 8), 4, (4, 4), 9)
    out = staged.prefill(seq)
    (tokens,) = seen
    assert len(tokens["score"]) == 0
    assert tokens["index"].tolist() == out["kept"][0] and len(out["kept"][0]) == 40
    assert (tokens["after"], tokens["n_layer"], tokens["spent"]) == (4, 8, 80.0 + 3 * 40)
    assert np.array_equal(tokens["self_sum"], out["self_sum"][1])
    assert np.array_equal(tokens["cross"], out["cross"][1])
    causal = [*range(40, 0, -1)]
    both_ways = [40] * 32 + [8] * 8
    assert tokens["n_visible"].tolist() == (both_ways if arch == "gemma3" else causal)
    assert (tokens["self_sum"] > 0).all() and (tokens["self_sum"] < tokens["n_visible"]).all()
    assert (tokens["cross"] > 0).all() and tokens["cross"].sum() < 1
    assert tokens["self_sum"].sum() < 40
    with pytest.raises(core.PlanError, match="needs must be none, last_row or atp, got 'all'"):
        core.Cut(after, watch, needs="all")


def test_together_equals_alone(make_rig, arch, precision, modules):
    rig = make_rig(arch, precision)
    prompts = [
        prompt(rig, rig.staged(), 5, (8, 8), 11, seed=1),
        prompt(rig, rig.staged(), 7, (5, 5), 3, (2, 3), 4, seed=2),
    ]
    together_equals_alone(rig, modules(rig).plan(), prompts)
