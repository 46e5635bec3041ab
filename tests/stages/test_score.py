"""Scores: the attention each image token gets from the last prompt row, for every kind of cache."""

import numpy as np
import pytest

from atp_cpp import _core as core
from support.invariants import attention_of_last_row, scores_equal_numpy
from support.rig import live_rows, nmse, prompt
from support.tolerance import bound

PROMPTS = {
    "image in the middle": (5, (8, 8), 11),
    "image first": ((6, 6), 5),
    "two images": (3, (4, 6), 4, (5, 5), 9),
    "images side by side": (2, (3, 3), (4, 4), 2),
    "question over several ubatches": (3, (6, 6), 150),
    "last token alone": (9, (3, 7), 1),
}


def fastv_plan(rig):
    """Cuts behind a full-attention layer each."""
    if rig.arch == "gemma3":
        return [core.Cut(4, "fastv", 0.4)]
    return [core.Cut(1, "fastv", 0.8), core.Cut(3, "fastv", 0.5), core.Cut(7, "fastv", 0.1)]


@pytest.mark.parametrize("parts", PROMPTS.values(), ids=PROMPTS)
def test_scores_equal_numpy(make_rig, arch, precision, parts):
    rig = make_rig(arch, precision)
    staged = rig.staged()
    seq = prompt(rig, staged, *parts)
    kept = scores_equal_numpy(rig, staged, seq, fastv_plan(rig), len(parts))
    assert len(kept[-1]) < seq.n_image_tokens


@pytest.mark.parametrize("n_ubatch", [1, 7, 32])
def test_scores_equal_numpy_when_a_prompt_takes_many_ubatches(make_rig, arch, n_ubatch):
    rig = make_rig(arch, "f32", n_ubatch=n_ubatch)
    staged = rig.staged()
    scores_equal_numpy(rig, staged, prompt(rig, staged, 5, (8, 8), 40), fastv_plan(rig), 3)


@pytest.mark.parametrize("arch", ["llama", "qwen2vl", "qwen3vl"])
def test_scores_of_a_prompt_that_ends_in_an_image(make_rig, arch, precision):
    rig = make_rig(arch, precision)
    staged = rig.staged()
    kept = scores_equal_numpy(rig, staged, prompt(rig, staged, 5, (6, 6)), fastv_plan(rig), 2)
    assert all(35 in alive for alive in kept), "the last row of the prompt stays"


def test_scores_after_a_cut_before_the_first_layer(make_rig):
    rig = make_rig("llama", "f32")
    staged = rig.staged()
    staged.set_plan([core.Cut(0, "grid", 0.5), core.Cut(2, "fastv", 0.25)])
    seq = prompt(rig, staged, 5, (8, 8), 11)
    out = staged.prefill(seq)
    assert [len(s) for s in out["scores"]] == [0, 32], "no score where none was asked for"
    plain = rig.plain(n_ubatch=512)
    plain.hide(0, [r for r in range(seq.n_rows) if r not in live_rows(seq, out["kept"][0])])
    visible = live_rows(seq, out["kept"][0])
    expected = attention_of_last_row(rig, plain, seq, 1, visible, 3)
    rows = [seq.image_rows[i] for i in out["kept"][0]]
    assert nmse(expected[rows], out["scores"][1]) < bound("cpu", "f32", "scores = NumPy")


@pytest.mark.parametrize("what", ["row before", "layer before", "one row shifted"])
def test_the_law_of_scores_can_fail(make_rig, arch, what):
    rig = make_rig(arch)
    staged = rig.staged()
    seq = prompt(rig, staged, 5, (8, 8), 11)
    staged.set_plan([core.Cut(4, "fastv", 0.5)])
    scores = staged.prefill(seq)["scores"][0]
    other, n_rows, il = seq, seq.n_rows, 3
    if what == "row before":
        other, n_rows = prompt(rig, staged, 5, (8, 8), 10), seq.n_rows - 1
    if what == "layer before":
        il = 2
    plain = rig.plain(n_ubatch=512)
    expected = attention_of_last_row(rig, plain, other, il, range(n_rows), 3)[5:69]
    if what == "one row shifted":
        expected = np.roll(expected, 1)
    assert nmse(expected, scores) > 100 * bound("cpu", rig.precision, "scores = NumPy")


def test_a_callable_sees_the_same_scores(make_rig):
    rig = make_rig("llama")
    staged = rig.staged()
    seq = prompt(rig, staged, 5, (3, 4), 2, (2, 2), 5)
    seen = []

    def watch(tokens):
        seen.append(tokens)
        return tokens["index"]

    plan = [core.Cut(1, "grid", 0.5), core.Cut(3, watch, 0.25, 9, needs="last_row")]
    staged.set_plan(plan)
    out = staged.prefill(seq)
    (tokens,) = seen
    assert tokens["index"].tolist() == out["kept"][0] == out["kept"][1]
    assert np.array_equal(tokens["score"], out["scores"][1])
    assert tokens["image"].tolist() == [int(i >= 12) for i in out["kept"][0]]
    assert tokens["images"] == [(12, 3, 4), (4, 2, 2)]
    assert (tokens["keep"], tokens["seed"]) == (0.25, 9)
    for i, y, x in zip(tokens["index"], tokens["y"], tokens["x"], strict=True):
        assert (y, x) == divmod(i, 4) if i < 12 else (y, x) == divmod(i - 12, 2)


def test_a_prompt_without_image_needs_no_score(make_rig):
    rig = make_rig("llama")
    staged = rig.staged()
    staged.set_plan([core.Cut(2, "fastv", 0.5)])
    out = staged.prefill(prompt(rig, staged, 9))
    assert out["kept"] == [[]]
    assert len(out["scores"][0]) == 0


def test_layers_with_a_window_only_give_no_score(make_rig):
    rig = make_rig("gemma3")
    staged = rig.staged()
    for cuts in ([3], [4, 7]):
        with pytest.raises(core.PlanError, match="hold no full-attention layer to score from"):
            staged.set_plan([core.Cut(after, "fastv", 0.5) for after in cuts])
    staged.set_plan([core.Cut(4, "fastv", 0.5), core.Cut(7, "random", 0.5)])
