"""Stages: cutting changes nothing, and dropping rows equals hiding them."""

import numpy as np
import pytest

from atp_cpp import _core as core
from support.invariants import masked, pruned_equals_masked, staged_equals_whole
from support.rig import dead_rows, live_rows, nmse, prompt
from support.tolerance import bound

N_LAYER = 8
CUT_SETS = [[], [1], [7], [2, 4, 6], [1, 2, 3, 4, 5, 6, 7]]

# ints are text tokens, pairs are images; n_ubatch is 64 unless said otherwise
PROMPTS = {
    "text": (20,),
    "one token": (1,),
    "an image alone": ((4, 4),),
    "image first": ((6, 6), 5),
    "image last": (5, (6, 6)),
    "one cell": (3, (1, 1), 2),
    "a row of cells": (3, (1, 24), 2),
    "two images": (3, (4, 6), 4, (5, 5), 9),
    "images side by side": (2, (3, 3), (4, 4), (2, 2), 1),
    "question over several ubatches": (3, (6, 6), 150),
    "preamble over several ubatches": (150, (6, 6), 3),
}


@pytest.mark.parametrize("cuts", CUT_SETS, ids=str)
def test_staged_equals_whole(make_rig, arch, precision, cuts):
    rig = make_rig(arch, precision)
    staged = rig.staged()
    assert staged.n_layer == N_LAYER
    staged_equals_whole(rig, staged, rig.plain(), prompt(rig, staged, 5, (8, 8), 11), cuts)


def test_staged_equals_whole_for_every_shape_of_prompt(make_rig, arch):
    rig = make_rig(arch)
    staged, plain = rig.staged(), rig.plain()
    for parts in PROMPTS.values():
        staged_equals_whole(rig, staged, plain, prompt(rig, staged, *parts), [2, 5])


@pytest.mark.parametrize("n_ubatch", [1, 7, 32, 512])
@pytest.mark.parametrize("arch", ["llama", "qwen2vl", "qwen3vl", "qwen2moe"])
def test_staged_equals_whole_when_a_prompt_takes_many_ubatches(make_rig, arch, n_ubatch):
    rig = make_rig(arch, n_ubatch=n_ubatch)
    staged = rig.staged()
    seq = prompt(rig, staged, 5, (8, 8), 40)
    staged_equals_whole(rig, staged, rig.plain(), seq, [2, 4, 6], n_steps=4)


def test_staged_equals_whole_on_two_threads(make_rig):
    rig = make_rig("llama", n_threads=2)
    staged = rig.staged()
    seq = prompt(rig, staged, 3, (5, 5), 4)
    staged_equals_whole(rig, staged, rig.plain(), seq, [3, 6], n_steps=2)


@pytest.mark.parametrize("cuts", [[1], [3], [4], [5], [3, 4], [4, 7]], ids=str)
def test_staged_equals_whole_far_beyond_the_sliding_window(make_rig, tiny_model, cuts):
    rig = make_rig("gemma3", n_ubatch=32)
    rig = type(rig)(tiny_model("gemma3", window=16), "gemma3", rig.options)
    staged = rig.staged()
    seq = prompt(rig, staged, 40, (5, 5), 60)
    staged_equals_whole(rig, staged, rig.plain(), seq, cuts, n_steps=40)


def test_an_image_that_sees_itself_is_one_ubatch_whatever_n_ubatch_says(make_rig):
    # plain llama.cpp refuses this; so it gets ubatches large enough, of the same text chunks
    rig = make_rig("gemma3", n_ubatch=16)
    staged = rig.staged()
    seq = prompt(rig, staged, 5, (8, 8), 11)
    plan = [core.Cut(2, "none"), core.Cut(5, "none")]
    assert pruned_equals_masked(rig, staged, seq, plan) == [list(range(64))] * 2
    with pytest.raises(core.StageError, match="needs n_ubatch >= 64, got 16"):
        rig.plain().prefill(seq)


PLANS = {
    "one cut": [(3, "random", 0.5)],
    "before the first layer": [(0, "grid", 0.25)],
    "before the first and later": [(0, "random", 0.5), (4, "grid", 0.2)],
    "before the last layer": [(7, "random", 0.3)],
    "everywhere": [(il, "random", 1.0 - il / 9) for il in range(N_LAYER)],
    "one token left": [(1, "grid", 1e-6)],
    "nothing dropped, then one left": [(2, "none", 1.0), (4, "random", 0.01)],
}


def make_plan(cuts):
    return [core.Cut(after, policy, keep, seed=7) for after, policy, keep in cuts]


@pytest.mark.parametrize("cuts", PLANS.values(), ids=PLANS)
def test_pruned_equals_masked(make_rig, arch, precision, cuts):
    rig = make_rig(arch, precision)
    staged = rig.staged()
    pruned_equals_masked(rig, staged, prompt(rig, staged, 5, (8, 8), 11), make_plan(cuts))


def test_pruned_equals_masked_for_every_shape_of_prompt(make_rig, arch):
    rig = make_rig(arch, "f32")
    staged = rig.staged()
    plan = make_plan([(1, "random", 0.6), (4, "grid", 0.3)])
    for parts in PROMPTS.values():
        pruned_equals_masked(rig, staged, prompt(rig, staged, *parts), plan)


@pytest.mark.parametrize("n_ubatch", [1, 7, 32])
@pytest.mark.parametrize("parts", [(5, (8, 8), 40), ((5, 5), (6, 4), 9)], ids=str)
def test_pruned_equals_masked_when_a_prompt_takes_many_ubatches(make_rig, arch, n_ubatch, parts):
    # deeper stages put text and image rows into one ubatch where the architecture lets them
    rig = make_rig(arch, "f32", n_ubatch=n_ubatch)
    staged = rig.staged()
    plan = make_plan([(0, "grid", 0.9), (2, "random", 0.5), (5, "grid", 0.2)])
    pruned_equals_masked(rig, staged, prompt(rig, staged, *parts), plan)


def test_pruned_equals_masked_far_beyond_the_sliding_window(tiny_model, make_rig):
    rig = make_rig("gemma3", "f32", n_ubatch=32)
    rig = type(rig)(tiny_model("gemma3", window=16), "gemma3", rig.options)
    staged = rig.staged()
    plan = make_plan([(2, "random", 0.5), (5, "grid", 0.1)])
    seq = prompt(rig, staged, 40, (5, 5), 60)
    pruned_equals_masked(rig, staged, seq, plan, n_steps=30, n_ubatch=32)


@pytest.mark.parametrize("keep_last", [False, True])
def test_pruned_equals_masked_for_a_policy_of_ones_own(make_rig, arch, keep_last):
    rig = make_rig(arch, "f32")
    staged = rig.staged()
    seq = prompt(rig, staged, 5, (4, 4), 3, (5, 5), 7)
    chosen = [15, 40] if keep_last else [0, 16]  # the corner cells of each image
    kept = pruned_equals_masked(rig, staged, seq, [core.Cut(3, lambda tokens: chosen)])
    assert kept == [chosen]


def test_an_image_sees_itself_but_not_the_image_behind_it(make_rig, arch):
    """Rows of one image may see each other in both directions, those of two images may not.

    Staged and plain decoders split a prompt by the same code, so this is asked of each.
    """
    rig = make_rig(arch)
    staged, plain = rig.staged(), rig.plain()
    width = staged.n_embd_inp
    rng = np.random.default_rng(8)
    first, second, other = rng.standard_normal((3, 9, width)).astype(np.float32)
    changed = first.copy()
    changed[8] = 2.0
    y, x = np.divmod(np.arange(9), 3)

    def logits(decoder, *images):
        seq = core.Sequence(width)
        seq.add_text([300, 301])
        for embd in images:
            where = np.stack([0 * y, y, x, 0 * y], axis=1).astype(np.int32) + seq.n_pos
            seq.add_image(
                embd, grid=(3, 3), causal=arch != "gemma3", pos=where if staged.mrope else None
            )
        seq.add_text([302])
        out = decoder.prefill(seq, all_logits=True)
        return out["logits"] if decoder is staged else out

    staged.set_plan([core.Cut(3, "none")])
    for decoder in (staged, plain):
        expected = logits(decoder, first, second)
        assert np.array_equal(logits(decoder, first, other)[:11], expected[:11])
        assert not np.array_equal(logits(decoder, first, other)[11:], expected[11:])
        sees_back = not np.array_equal(logits(decoder, changed, second)[2:10], expected[2:10])
        assert sees_back == (arch == "gemma3")


@pytest.mark.parametrize("what", ["one more hidden", "one row swapped", "a position too far"])
def test_the_law_of_pruning_can_fail(make_rig, arch, precision, what):
    """One wrong row of 80, or a shift by one, is far above the tolerance."""
    rig = make_rig(arch, precision)
    staged = rig.staged()
    seq = prompt(rig, staged, 5, (8, 8), 11)
    plan = make_plan([(2, "random", 0.25)])
    staged.set_plan(plan)
    out = staged.prefill(seq, n_predict=4)
    kept = out["kept"][0]
    seen = {
        "one more hidden": kept[1:],
        "one row swapped": sorted({*kept[1:], min(set(range(64)) - set(kept))}),
        "a position too far": kept,
    }[what]
    plain = masked(rig, seq, plan, [seen], 64)
    expected, measured = plain.prefill(seq), out["logits"]
    if what == "a position too far":
        expected = plain.decode(400, seq.n_pos)
        measured = staged.decode([(0, 400, seq.n_pos + 1)])
    assert nmse(expected, measured) > 10 * bound("cpu", rig.precision, "pruned = masked")


def test_the_last_row_stays_even_as_part_of_an_image(make_rig, arch):
    """It predicts the first token: the logits must be its own, not those of the last survivor."""
    rig = make_rig(arch, "f32")
    staged = rig.staged()
    seq = prompt(rig, staged, 5, (6, 6))
    plan = [core.Cut(2, lambda tokens: [3, 17]), core.Cut(5, lambda tokens: [3])]
    assert pruned_equals_masked(rig, staged, seq, plan) == [[3, 17, 35], [3, 35]]


def test_text_rows_stay_and_their_order_too(make_rig):
    rig = make_rig("llama")
    staged = rig.staged()
    seq = prompt(rig, staged, 2, (2, 2), 2, (1, 3), 1)
    assert live_rows(seq, [1, 4]) == [0, 1, 3, 6, 7, 8, 11]
    assert dead_rows(seq, [1, 4]) == [2, 4, 5, 9, 10]
    staged.set_plan([core.Cut(1, lambda tokens: [1, 4])])
    assert staged.prefill(seq, all_logits=True)["logits"].shape == (7, staged.n_vocab)
    assert np.isfinite(staged.decode([(0, 300, seq.n_pos)])).all()


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"])
def test_caches_of_every_quantised_type_are_llama_cpps(make_rig, tiny_model, kind):
    """Cut or not, the logits are the same to the bit; and a run that scores and drops is finite."""
    rig = make_rig("llama")
    options = {"flash_attn": "on", "type_k": kind, "type_v": kind}
    staged, plain = rig.staged(**options), rig.plain(**options)
    seq = prompt(rig, staged, 3, (6, 6), 12)
    staged_equals_whole(rig, staged, plain, seq, [2, 5])
    staged.remove(0)
    staged.set_plan([core.Cut(2, "fastv", 0.25)])
    out = staged.prefill(seq, n_predict=1, all_logits=False)
    assert [len(kept) for kept in out["kept"]] == [9]
    assert np.isfinite(out["logits"]).all()
