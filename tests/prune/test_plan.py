"""Plans: what can be asked for, what is refused and why, and the mean over layers."""

import numpy as np
import pytest

from atp_cpp import _core as core
from support.invariants import layer_mean
from support.rig import prompt


@pytest.fixture(scope="module")
def staged(make_rig):
    return make_rig("llama").staged()


def test_every_border_of_every_architecture_is_legal(make_rig, arch):
    assert make_rig(arch).staged().legal_cuts == [1, 2, 3, 4, 5, 6, 7]


def test_a_model_of_one_layer_has_no_border(tiny_model):
    staged = core.Decoder(core.ModelParams(str(tiny_model("llama", n_layer=1)), n_ctx=64))
    assert staged.legal_cuts == []
    staged.set_plan([core.Cut(0, "grid", 0.5)])
    with pytest.raises(core.PlanError, match="this model has 1 layers; choose 0 to 0"):
        staged.set_plan([core.Cut(1, "none")])


REFUSED = {
    "beyond the last layer": ([(8, "none", 1.0)], "has 8 layers; choose 0 to 7"),
    "below the first": ([(-1, "none", 1.0)], "has 8 layers; choose 0 to 7"),
    "far beyond": ([(2**31 - 1, "none", 1.0)], "has 8 layers"),
    "not ascending": ([(5, "none", 1.0), (2, "none", 1.0)], "must come in ascending order"),
    "twice at one place": ([(3, "grid", 0.5), (3, "grid", 0.2)], "each at its own place"),
    "keep nothing": ([(2, "grid", 0.0)], "keep must be above 0 and at most 1, got 0.0"),
    "keep less than nothing": ([(2, "grid", -0.5)], "keep must be above 0"),
    "keep more than all": ([(2, "grid", 1.5)], "keep must be above 0 and at most 1, got 1.5"),
    "keep no number": ([(2, "grid", float("nan"))], "keep must be above 0"),
    "score before the first layer": ([(0, "fastv", 0.5)], "none exist before the first layer"),
}


@pytest.mark.parametrize(("cuts", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_plan_that_cannot_run_is_refused_with_its_reason(staged, cuts, reason):
    with pytest.raises(core.PlanError, match=reason) as error:
        staged.set_plan([core.Cut(*cut) for cut in cuts])
    assert "\n" not in str(error.value)
    assert f"cut after {cuts[-1][0]} layers (policy {cuts[-1][1]})" in str(error.value)


def test_a_refused_plan_changes_nothing(make_rig):
    rig = make_rig("llama")
    staged = rig.staged()
    seq = prompt(rig, staged, 3, (4, 4), 3)
    staged.set_plan([core.Cut(2, "grid", 0.25)])
    expected = staged.prefill(seq)["logits"]
    staged.remove(0)
    for cuts, _ in REFUSED.values():
        with pytest.raises(core.PlanError):
            staged.set_plan([core.Cut(*cut) for cut in cuts])
    out = staged.prefill(seq)
    assert np.array_equal(out["logits"], expected)
    assert len(out["kept"][0]) == 4


def test_the_plan_cannot_change_under_a_living_sequence(make_rig):
    rig = make_rig("llama")
    staged = rig.staged()
    staged.prefill(prompt(rig, staged, 3))
    with pytest.raises(core.PlanError, match="while sequences are alive; remove them first"):
        staged.set_plan([core.Cut(2, "grid", 0.25)])
    staged.remove(0)
    staged.set_plan([core.Cut(2, "grid", 0.25)])


ILLEGAL_KEEP_LISTS = {
    "nothing": ([], "image 0 would lose all its tokens"),
    "nothing of the second image": ([0, 1], "image 1 would lose all its tokens"),
    "twice the same": ([0, 0, 16], "ascending without repeats, got 0 before 0"),
    "descending": ([16, 0], "ascending without repeats, got 16 before 0"),
    "beyond the last": ([0, 20], "image token 20 is not alive at this cut"),
    "negative": ([-1, 0, 16], "image token -1 is not alive at this cut"),
    "no list": (None, "must return the image-token indices to keep, got None"),
    "no numbers": (["a"], "must return the image-token indices"),
    "fractions": ([0.5, 16], "must return the image-token indices"),
}


@pytest.mark.parametrize(("kept", "reason"), ILLEGAL_KEEP_LISTS.values(), ids=ILLEGAL_KEEP_LISTS)
@pytest.mark.parametrize("after", [0, 3])
def test_a_policy_that_breaks_a_law_is_an_error(make_rig, kept, reason, after):
    rig = make_rig("llama")
    staged = rig.staged()
    seq = prompt(rig, staged, 3, (4, 4), 2, (2, 2), 3)
    staged.set_plan([core.Cut(after, lambda tokens: kept)])
    with pytest.raises(core.PlanError, match=reason):
        staged.prefill(seq)
    with pytest.raises(core.StageError, match="not alive"):
        staged.decode([(0, 300, seq.n_pos)])


def test_what_was_dropped_at_a_cut_cannot_come_back_at_the_next(make_rig):
    rig = make_rig("llama")
    staged = rig.staged()
    staged.set_plan([core.Cut(1, lambda tokens: [0, 3]), core.Cut(4, lambda tokens: [0, 1])])
    with pytest.raises(core.PlanError, match="image token 1 is not alive at this cut"):
        staged.prefill(prompt(rig, staged, 3, (2, 2), 3))


def test_an_error_of_a_callable_arrives_as_it_is(make_rig):
    rig = make_rig("llama")
    staged = rig.staged()

    def broken(tokens):
        raise ZeroDivisionError("mine")

    staged.set_plan([core.Cut(2, broken)])
    with pytest.raises(ZeroDivisionError, match="mine"):
        staged.prefill(prompt(rig, staged, 3, (4, 4), 3))


def test_a_cut_says_what_it_is():
    cut = core.Cut(3, "grid", keep=0.25, seed=4)
    assert (cut.after, cut.policy, cut.keep, cut.seed) == (3, "grid", 0.25, 4)
    assert repr(cut).startswith("Cut(after=3, policy='grid', keep=0.25")
    assert core.Cut(3, lambda tokens: []).policy == "callable"
    with pytest.raises(TypeError):
        core.Cut(3, "grid", seed=-1)


@pytest.mark.parametrize(
    ("cuts", "n_kept", "mean"),
    [
        ([], [], 100.0),
        ([0], [10], 10.0),
        ([4], [20], 60.0),
        ([7], [1], (700 + 1) / 8),
        ([2, 6], [50, 10], (200 + 200 + 20) / 8),
        ([0, 1, 7], [90, 80, 70], (90 + 6 * 80 + 70) / 8),
    ],
)
def test_the_definition_of_the_layer_mean(cuts, n_kept, mean):
    assert layer_mean(cuts, n_kept, 100, 8) == pytest.approx(mean)
