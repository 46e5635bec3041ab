"""ATP's scores: attention from all image rows and from the question, against NumPy."""

import numpy as np
import pytest

from atp_cpp import _core as core
from support.rig import Rig, nmse, prompt
from support.score_twin import atp_plan, atp_scores_equal_numpy, map_of_q_and_k, may_see, received
from support.tolerance import bound, check

PROMPTS = {
    "image in the middle": (5, (8, 8), 11),
    "image first": ((6, 6), 5),
    "one token": (3, (1, 1), 2),
    "one question row": (9, (3, 7), 1),
    "two images": (3, (4, 6), 4, (5, 5), 9),
    "images side by side": (2, (3, 3), (4, 4), 2),
    "four images": ((2, 3), 1, (4, 4), 20, (1, 5), (3, 3), 4),
    "question over several ubatches": (3, (6, 6), 150),
    "image over several ubatches": (3, (12, 12), 4),
}


@pytest.mark.parametrize("parts", PROMPTS.values(), ids=PROMPTS)
def test_scores_equal_numpy(make_rig, arch, precision, parts):
    rig = make_rig(arch, precision)
    atp_scores_equal_numpy(rig, rig.staged(), parts)


@pytest.mark.parametrize("n_ubatch", [1, 7, 16, 32, 512])
def test_scores_equal_numpy_when_a_prompt_takes_many_ubatches(make_rig, arch, n_ubatch):
    rig = make_rig(arch, "f32", n_ubatch=n_ubatch)
    atp_scores_equal_numpy(rig, rig.staged(), (5, (8, 8), 3, (4, 5), 40))


@pytest.mark.parametrize("n_head", [1, 2, 3, 5, 6, 7, 32])
@pytest.mark.parametrize("precision", ["f16", "f32"])
def test_scores_equal_numpy_for_any_number_of_heads(tiny_model, make_rig, n_head, precision):
    rig = make_rig("llama", precision)
    model = tiny_model("llama", n_embd=32 * n_head, n_head_kv=1 if n_head % 2 else 2)
    rig = Rig(model, "llama", rig.options)
    atp_scores_equal_numpy(rig, rig.staged(), (5, (8, 8), 11))


@pytest.mark.parametrize(("n_ubatch", "precision"), [(512, "f16"), (1024, "f16"), (512, "f32")])
def test_scores_equal_numpy_where_the_map_takes_many_blocks(
    tiny_model, make_rig, n_ubatch, precision
):
    """16 heads x 1,000 cells are 64 KB a row, a block is 32 rows; between the images lies text."""
    rig = make_rig("llama", precision)
    options = rig.options | {"n_ctx": 1280, "n_ubatch": n_ubatch}
    rig = Rig(tiny_model("llama", n_embd=256, head_dim=16), "llama", options)
    parts = (5, (24, 24), 70, (14, 14), 100, (3, 4), 40)
    atp_scores_equal_numpy(rig, rig.staged(), parts, atp_plan(rig, [(2, 0.9), (5, 0.5)]), 1024)


@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_scores_in_a_cache_of_several_sequences(make_rig, arch, precision):
    """The third prompt finds cells before and behind those of the second, out of order."""
    rig = make_rig(arch, precision, n_ctx=1024)
    plan = atp_plan(rig)
    single = rig.staged()
    single.set_plan(plan)
    shared = rig.staged(n_seq_max=3)
    shared.set_plan(plan)
    prompts = [
        prompt(rig, shared, *parts, seed=seed)
        for seed, parts in enumerate([(5, (4, 4), 11), (9, (6, 6), 30), (4, (8, 8), 3, (5, 5), 70)])
    ]
    for seq_id, seq in enumerate(prompts):
        if seq_id == 2:
            shared.remove(0)
        expected = single.prefill(seq, n_predict=8)
        measured = shared.prefill(seq, seq_id=seq_id, n_predict=8)
        assert measured["kept"] == expected["kept"]
        for what in ("self_sum", "cross"):
            for a, b in zip(expected[what], measured[what], strict=True):
                check(nmse(a, b), rig.backend, rig.precision, "together = alone")


def test_a_callable_sees_the_same_scores(make_rig, arch):
    rig = make_rig(arch)
    staged = rig.staged()
    parts = (5, (3, 4), 2, (2, 2), 5)
    seq = prompt(rig, staged, *parts)
    seen = []

    def watch(tokens):
        seen.append(tokens)
        return tokens["index"]

    staged.set_plan([core.Cut(1, "grid", 0.5), core.Cut(4, watch, needs="atp")])
    out = staged.prefill(seq)
    (tokens,) = seen
    assert np.array_equal(tokens["self_sum"], out["self_sum"][1])
    assert np.array_equal(tokens["cross"], out["cross"][1])
    assert tokens["score"].size == 0
    rows = [seq.image_rows[i] for i in out["kept"][0]]
    sees = may_see(rig, parts, rows)
    assert tokens["n_visible"].tolist() == sees[np.ix_(rows, rows)].sum(axis=0).tolist()


def test_cuts_of_other_kinds_between(make_rig):
    rig = make_rig("llama", "f32")
    staged = rig.staged()
    seq = prompt(rig, staged, 5, (8, 8), 11)
    first, last = atp_plan(rig, [(1, 1.0), (6, 0.5)])
    alone = []
    for plan in ([first], [first, core.Cut(4, "none"), last], [core.Cut(4, "none"), last]):
        staged.remove(0)
        staged.set_plan(plan)
        alone.append(staged.prefill(seq))
    assert np.array_equal(alone[0]["self_sum"][0], alone[1]["self_sum"][0])
    assert [len(s) for s in alone[1]["self_sum"]] == [64, 0, 64]
    assert [len(s) for s in alone[1]["scores"]] == [0, 0, 0], "the last row was not asked for"
    for what in ("self_sum", "cross"):
        assert nmse(alone[1][what][2], alone[2][what][1]) < 1e-12


@pytest.mark.parametrize("what", ["layer before", "one row shifted", "text counted", "half a row"])
def test_the_law_of_scores_can_fail(make_rig, arch, what):
    rig = make_rig(arch, "f32")
    staged = rig.staged()
    parts = (5, (8, 8), 4, (3, 5), 11)
    plan = atp_plan(rig, [(4, 0.5)])
    staged.set_plan(plan)
    seq = prompt(rig, staged, *parts)
    out = staged.prefill(seq)
    plain = rig.plain(n_ubatch=512)
    sees = may_see(rig, parts, range(seq.n_rows))
    il = 2 if what == "layer before" else 3
    attention = map_of_q_and_k(rig, plain, seq, il, sees, len(parts))
    if what == "one row shifted":
        attention = np.roll(attention, 1, axis=1)
    if what == "text counted":  # the text between the images as a question
        attention[88:91] = attention[69:72]
    if what == "half a row":  # of 79 image rows one counts half
        attention[40] *= 0.5
        attention[90] *= 0.5
    self_sum, cross = received(attention, parts, range(seq.n_rows))
    limit = bound("cpu", rig.precision, "sums = NumPy")
    if what != "text counted":
        assert nmse(self_sum, out["self_sum"][0]) > 10 * limit
    assert nmse(cross, out["cross"][0]) > 10 * limit


def test_a_model_whose_map_is_large_needs_little_memory(tiny_model, make_rig):
    """2,880 image tokens x 32 heads: the map of all heads would be 1.1 GB."""
    rig = make_rig("llama", n_ctx=3072)
    model = tiny_model("llama", n_embd=256, head_dim=8, n_layer=2)
    for n_ubatch, limit in ((512, 16), (3072, 64)):
        rig = Rig(model, "llama", rig.options | {"n_ubatch": n_ubatch})
        needed = []
        for scored in (False, True):
            staged = rig.staged()
            plan = atp_plan(rig, [(1, 0.1)]) if scored else [core.Cut(1, "grid", 0.1)]
            staged.set_plan(plan)
            staged.prefill(prompt(rig, staged, 5, (48, 60), 40))
            needed.append(staged.compute_bytes)
        assert needed[1] - needed[0] < limit * 2**20
