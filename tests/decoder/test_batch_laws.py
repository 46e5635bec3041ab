"""Rows of several prompts in one cache give what they give alone, with holes and shared text."""

import shutil

import gguf
import numpy as np
import pytest

from atp_cpp import _core as core
from support.batch_laws import Course, batch_equals_alone, cells_for
from support.invariants import run_once
from support.rig import PRECISIONS, Rig, nmse, prompt
from support.tolerance import check

LEADING = [301, 302, 303, 304, 305, 306, 307]


def plan_for(rig):
    """Keeps by place, and by the attention of the last row where the stage has such a layer."""
    second = core.Cut(5, "random" if rig.arch == "gemma3" else "fastv", 0.2)
    return [core.Cut(2, "grid", 0.5), second]


def first_tokens(tokens):
    """A policy of its own mind, on ATP's sums: as many as score above their mean."""
    score = tokens["self_sum"] + tokens["cross"]
    kept = tokens["index"][score >= score.mean()]
    return kept if len(kept) else tokens["index"][:1]


PLANS = {
    "whole": lambda rig: [],
    "cut": plan_for,
    "before all": lambda rig: [core.Cut(0, "grid", 0.25), core.Cut(3, "none")],
    "sums": lambda rig: [core.Cut(4, first_tokens, needs="atp")],
}


def some_prompts(rig, n=5, leading=LEADING):
    decoder = rig.staged()
    shapes = [(5, (8, 8), 11), (3, (5, 5), 6), ((4, 6), 9), (20, (6, 6), 4), (1, (7, 3), 3)]
    return [
        prompt(rig, decoder, *shape, seed=k, leading=leading) for k, shape in enumerate(shapes[:n])
    ]


def two_images(rig):
    return prompt(rig, rig.staged(), 2, (5, 5), 3, (2, 3), 4, seed=9, leading=LEADING)


COURSES = {
    "in order": Course([9, 2, 6, 0, 4], 3, [0, 1, 2, 3, 4]),
    "backwards": Course([1, 8, 3, 5, 7], 2, [4, 3, 2, 1, 0]),
    "one by one": Course([3, 3, 3, 3, 3], 1, [2, 0, 4, 1, 3]),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("course", COURSES)
def test_batch_equals_alone(make_rig, arch, plan, course):
    rig = make_rig(arch, "f32")
    shared = batch_equals_alone(rig, PLANS[plan](rig), some_prompts(rig), COURSES[course])
    # where windows slide, the whole text of the first is shared or nothing
    assert min(shared) == (0 if arch == "gemma3" and course != "one by one" else len(LEADING))


@pytest.mark.parametrize("plan", PLANS)
def test_batch_equals_alone_in_any_precision(make_rig, arch, precision, plan):
    rig = make_rig(arch, precision)
    batch_equals_alone(rig, PLANS[plan](rig), some_prompts(rig, 3), Course([5, 1, 3], 2, [0, 1, 2]))


def test_two_images_and_text_alone_in_one_batch(make_rig, arch):
    rig = make_rig(arch)
    decoder = rig.staged()
    prompts = [
        two_images(rig),
        prompt(rig, decoder, 30, seed=1, leading=LEADING),
        *some_prompts(rig, 2),
    ]
    batch_equals_alone(rig, plan_for(rig), prompts, Course([6, 3, 8, 5], 3, [0, 1, 2, 3]))


def shared_by(rig, *prompts):
    """Rows that each of the prompts shares when they start in this order."""
    course = Course([4] * len(prompts), 2, range(len(prompts)))
    return batch_equals_alone(rig, plan_for(rig), prompts, course)


def test_text_before_the_image_is_shared(make_rig, arch):
    rig = make_rig(arch)
    decoder = rig.staged()
    text = [300 + k for k in range(40)]
    first = prompt(rig, decoder, (5, 5), 9, seed=1, leading=text)
    same = prompt(rig, decoder, (4, 4), 7, seed=2, leading=text)
    longer = prompt(rig, decoder, 3, (4, 4), 7, seed=3, leading=text)
    shorter = prompt(rig, decoder, (4, 4), 7, seed=4, leading=text[:25])
    other = prompt(rig, decoder, (4, 4), 7, seed=5, leading=[*text[:30], 299, 298])
    text_only = prompt(rig, decoder, seed=6, leading=text)
    none = prompt(rig, decoder, (4, 4), 7, seed=7)
    shared = shared_by(rig, first, same, longer, shorter, other, text_only, none)
    if arch == "gemma3":  # all 40 rows or none
        assert shared == [40, 40, 40, 0, 0, 0, 0]
    else:
        assert shared == [40, 40, 40, 25, 30, 39, 0], "one row at least is computed"


@pytest.mark.parametrize("n_text", [3, 16, 40, 90])
def test_shared_text_longer_than_the_windows(tiny_model, n_text):
    """gemma3 with windows of 16 rows, whose caches give away the cells of rows nobody will see."""
    rig = Rig(tiny_model("gemma3", window=16), "gemma3", PRECISIONS["f32"])
    decoder = rig.staged()
    text = [300 + k for k in range(n_text)]
    prompts = [
        prompt(rig, decoder, *parts, seed=k, leading=text)
        for k, parts in enumerate([((5, 5), 9), ((6, 6), 40), ((3, 3), 2), ((7, 7), 25)])
    ]
    course = Course([50, 7, 30, 20], 2, [0, 1, 2, 3])
    assert batch_equals_alone(rig, plan_for(rig), prompts, course) == [n_text] * 4


def test_a_used_batch_is_as_a_new_one(make_rig, arch):
    """Bit for bit: of what was there before nothing is left."""
    rig = make_rig(arch)
    prompts, plan = some_prompts(rig), plan_for(rig)
    used, fresh = rig.staged(), rig.staged()
    for decoder in (used, fresh):
        decoder.set_plan(plan)
        decoder.reserve(cells_for(plan, prompts, 3), 3)
    fresh.prefill(prompts[0], seq_id=1)  # the shared text is of the same prompt
    fresh.remove(1)
    for slot, seq in enumerate(prompts[:3]):
        used.prefill(seq, seq_id=slot, n_predict=4)
        used.decode([(slot, 300, seq.n_pos)])
    for slot in (1, 0, 2):
        used.remove(slot)
    assert np.array_equal(run_once(used, prompts[3]), run_once(fresh, prompts[3]))


def test_values_that_are_no_numbers_reach_nobody(make_rig, arch):
    rig = make_rig(arch, "f32")  # without flash attention: 0 * NaN of a masked cell would be NaN
    decoder, plan = rig.staged(), plan_for(rig)
    good = some_prompts(rig, 2)
    bad = core.Sequence(decoder.n_embd_inp)
    bad.add_text(LEADING)
    embd = np.zeros((16, decoder.n_embd_inp), np.float32)
    embd[3, 5] = np.nan
    bad.add_image(embd, grid=(4, 4))
    bad.add_text(LEADING)
    decoder.set_plan(plan)
    decoder.reserve(cells_for(plan, good, 3), 3)
    decoder.prefill(good[0], seq_id=0, n_predict=4)
    expected = decoder.decode([(0, 300, good[0].n_pos)])
    decoder.remove(0)
    decoder.prefill(good[0], seq_id=0, n_predict=4)
    with pytest.raises(core.ImageError, match="hold values that are no numbers"):
        decoder.prefill(bad, seq_id=1, n_predict=4)
    assert np.array_equal(decoder.decode([(0, 300, good[0].n_pos)]), expected)


@pytest.fixture
def damaged(tiny_model, tmp_path):
    """A model in which one token, the last, is embedded as NaN."""
    path = tmp_path / "damaged.gguf"
    shutil.copy(tiny_model("llama"), path)
    (table,) = (t for t in gguf.GGUFReader(path, "r+").tensors if t.name == "token_embd.weight")
    table.data[-1] = np.nan
    return Rig(path, "llama", PRECISIONS["f32"])


@pytest.mark.parametrize("reserved", [False, True])
def test_a_cache_that_saw_nan_is_clean_for_the_next(damaged, reserved):
    decoder, fresh = damaged.staged(), damaged.staged()
    good, bad = (prompt(damaged, decoder, 3, (5, 5), 6, seed=k, leading=LEADING) for k in range(2))
    bad.add_text([decoder.n_vocab - 1])
    if reserved:
        decoder.reserve(cells_for([], [good, bad], 2), 2)
    out = decoder.prefill(bad)
    assert np.isnan(out["logits"]).any()
    decoder.remove(0)
    measured = run_once(decoder, good)
    error = nmse(run_once(fresh, good)[-4:], measured[-4:])
    check(error, damaged.backend, damaged.precision, "batch = alone")
