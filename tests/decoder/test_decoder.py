"""The staged decoder: several sequences, errors that leave the others whole, caches that shrink."""

import numpy as np
import pytest

from atp_cpp import _core as core
from support.invariants import nothing_leaks, run_once, together_equals_alone
from support.rig import Rig, nmse, prompt, steps
from support.tolerance import check


def plan_for(rig):
    second = core.Cut(5, "random" if rig.arch == "gemma3" else "fastv", 0.2)
    return [core.Cut(2, "grid", 0.5), second]


def two_prompts(rig, decoder):
    return [
        prompt(rig, decoder, 5, (8, 8), 11, seed=1),
        prompt(rig, decoder, 7, (5, 5), 3, (2, 3), 4, seed=2),
    ]


def test_together_equals_alone(make_rig, arch, precision):
    rig = make_rig(arch, precision)
    together_equals_alone(rig, plan_for(rig), two_prompts(rig, rig.staged()))


def test_three_together_equal_each_alone(make_rig):
    rig = make_rig("llama", n_ubatch=16)
    prompts = [*two_prompts(rig, rig.staged()), prompt(rig, rig.staged(), 30, seed=3)]
    together_equals_alone(rig, plan_for(rig), prompts)


def test_a_sequence_goes_on_unmoved_while_others_come_and_go(make_rig, arch):
    rig = make_rig(arch, n_seq_max=2)
    staged = rig.staged()
    first, second = two_prompts(rig, staged)
    staged.set_plan(plan_for(rig))
    expected = run_once(staged, first, n_steps=6)
    measured = [staged.prefill(first, n_predict=6, all_logits=True)["logits"]]
    for i, token in enumerate(steps(staged, 6)):
        if i in (1, 3):
            staged.prefill(second, seq_id=1, n_predict=2)
        if i == 2:
            staged.remove(1)
        if i == 4:
            with pytest.raises(core.StageError):
                staged.prefill(second, seq_id=1, n_predict=10_000)
        measured.append(staged.decode([(0, token, first.n_pos + i)]))
    # other cells, other order of sums: near, not equal
    error = nmse(expected, np.concatenate(measured))
    check(error, rig.backend, rig.precision, "together = alone")


def test_nothing_leaks_from_one_prompt_into_the_next(make_rig, arch):
    rig = make_rig(arch)
    staged = rig.staged()
    first, second = two_prompts(rig, staged)
    nothing_leaks(rig, staged, plan_for(rig), first, second)
    nothing_leaks(rig, staged, plan_for(rig), second, first)


def test_nothing_leaks_when_the_plan_changes(make_rig, arch):
    rig = make_rig(arch)
    staged = rig.staged()
    first, second = two_prompts(rig, staged)
    for plan in ([], plan_for(rig), [core.Cut(0, "grid", 0.1)], [core.Cut(7, "grid", 0.1)]):
        nothing_leaks(rig, staged, plan, first, second)


def test_nothing_leaks_after_an_error_in_the_middle(make_rig, arch):
    rig = make_rig(arch)
    staged, fresh = rig.staged(), rig.staged()
    first, second = two_prompts(rig, staged)
    on = {"broken": True}

    def now_and_then(tokens):
        if on["broken"]:
            raise ValueError("in the middle")
        return tokens["index"][::2]

    plan = [core.Cut(2, "grid", 0.5), core.Cut(5, now_and_then)]
    staged.set_plan(plan)
    with pytest.raises(ValueError, match="in the middle"):
        staged.prefill(first)
    on["broken"] = False
    fresh.set_plan(plan)
    assert np.array_equal(run_once(staged, second), run_once(fresh, second))


def test_a_prompt_again_gives_the_same(make_rig, arch):
    rig = make_rig(arch)
    staged = rig.staged()
    staged.set_plan(plan_for(rig))
    seq = two_prompts(rig, staged)[0]
    assert np.array_equal(run_once(staged, seq), run_once(staged, seq))


def cells(n):
    """Cells come in steps of 64 on a CPU."""
    return -(-n // 64) * 64


@pytest.mark.parametrize("type_k", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("arch", ["llama", "qwen2vl", "qwen3vl", "phi3", "qwen2moe"])
def test_kv_bytes_are_those_of_the_survivors(make_rig, arch, type_k):
    """layers x cells x 2 (k and v) x 64 values: measured from the real buffers."""
    per_value = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}[type_k]
    rig = make_rig(arch, type_k=type_k, type_v=type_k)
    staged = rig.staged()
    seq = prompt(rig, staged, 5, (16, 16), 11)
    measured = []
    for keep in (1.0, 0.5, 0.25, 1e-6):
        staged.remove(0)
        staged.set_plan([core.Cut(2, "grid", keep)])
        staged.prefill(seq, n_predict=20)
        n_live = 16 + max(1, round(256 * keep))
        n_cells = [cells(272 + 20), cells(n_live + 20)]
        assert staged.n_cells == n_cells
        assert staged.kv_bytes == (2 * n_cells[0] + 6 * n_cells[1]) * 2 * 64 * per_value
        measured.append(staged.kv_bytes)
    assert measured == sorted(measured, reverse=True)
    assert measured[-1] < 0.5 * measured[0]
    staged.release()
    assert staged.kv_bytes == 0


def test_kv_bytes_fall_with_sliding_windows_too(tiny_model):
    """gemma3's windows hold their own cells, in steps of 256."""
    rig = Rig(tiny_model("gemma3", window=512), "gemma3", {"n_ctx": 2048, "n_ubatch": 512})
    staged = rig.staged()
    seq = prompt(rig, staged, 5, (32, 32), 11)
    measured = []
    for keep in (1.0, 0.5, 0.05):
        staged.remove(0)
        staged.set_plan([core.Cut(2, "grid", keep)])
        staged.prefill(seq, n_predict=20)
        measured.append(staged.kv_bytes)
    assert measured[2] < measured[1] < measured[0]
    assert measured[2] < 0.6 * measured[0]


def test_a_context_is_full_at_its_last_position(make_rig):
    rig = make_rig("llama", n_ctx=64)
    staged = rig.staged()
    seq = prompt(rig, staged, 5, (7, 7), 6)
    staged.set_plan([core.Cut(2, "grid", 0.1)])
    with pytest.raises(core.StageError, match=r"takes 60 positions \(49 of them image tokens\)"):
        staged.prefill(seq, n_predict=5)
    staged.prefill(seq, n_predict=4)
    for pos in range(60, 64):
        staged.decode([(0, 300, pos)])
    with pytest.raises(core.StageError, match="position 64 is outside the context of 64; raise"):
        staged.decode([(0, 300, 64)])


def test_decoding_beyond_what_was_reserved_is_an_error_and_ends_the_sequence(make_rig):
    rig = make_rig("llama")
    staged = rig.staged()
    seq = prompt(rig, staged, 60)
    staged.prefill(seq, n_predict=0)
    for pos in range(60, 64):
        staged.decode([(0, 300, pos)])
    with pytest.raises(core.StageError, match="no room in the KV cache for 1 rows"):
        staged.decode([(0, 300, 64)])
    with pytest.raises(core.StageError, match="sequence 0 is not alive; prefill it first"):
        staged.decode([(0, 300, 64)])
    staged.prefill(seq, n_predict=1)


STEPS_REFUSED = {
    "no rows": ([], "at least one row"),
    "dead sequence": ([(1, 300, 5)], "sequence 1 is not alive"),
    "token too large": ([(0, 512, 5)], "token 512 is outside the vocabulary of 512"),
    "token below zero": ([(0, -1, 5)], "token -1 is outside the vocabulary"),
    "a position that is taken": ([(0, 300, 4)], "4 of sequence 0 is taken; it goes on at 5"),
    "one position twice": ([(0, 300, 5), (0, 301, 5)], "position 5 of sequence 0 is taken"),
    "beyond the context": ([(0, 300, 512)], "position 512 is outside the context of 512"),
}


@pytest.mark.parametrize(("rows", "reason"), STEPS_REFUSED.values(), ids=STEPS_REFUSED)
def test_a_step_that_cannot_be_is_refused_and_changes_nothing(make_rig, rows, reason):
    rig = make_rig("llama")
    staged, other = rig.staged(), rig.staged()
    seq = prompt(rig, staged, 5)
    for decoder in (staged, other):
        decoder.prefill(seq, n_predict=4)
    with pytest.raises(core.StageError, match=reason):
        staged.decode(rows)
    assert np.array_equal(staged.decode([(0, 300, 5)]), other.decode([(0, 300, 5)]))


def test_prompts_that_cannot_be_are_refused(make_rig):
    rig = make_rig("llama")
    staged = rig.staged()
    seq = prompt(rig, staged, 5)
    with pytest.raises(core.StageError, match="the prompt is empty"):
        staged.prefill(core.Sequence(staged.n_embd_inp))
    for seq_id in (-1, 1):
        with pytest.raises(core.StageError, match=f"id {seq_id} is outside 0 to n_seq_max - 1 = 0"):
            staged.prefill(seq, seq_id=seq_id)
    with pytest.raises(core.StageError, match="n_predict must be at least 0, got -5"):
        staged.prefill(seq, n_predict=-5)
    with pytest.raises(core.StageError, match="2147483647 are to be generated"):
        staged.prefill(seq, n_predict=2**31 - 1)
    narrow = core.Sequence(4)
    narrow.add_image(np.zeros((4, 4), np.float32), grid=(2, 2))
    with pytest.raises(core.ImageError, match="are 4 wide, this model takes 128"):
        staged.prefill(narrow)
    for token in (-1, 512):
        strange = core.Sequence(staged.n_embd_inp)
        strange.add_text([token])
        with pytest.raises(core.StageError, match="outside the vocabulary of 512"):
            staged.prefill(strange)


@pytest.mark.parametrize("cuts", [[], [1], [4], [1, 2, 3, 4, 5, 6, 7]], ids=str)
def test_self_test_finds_no_difference(make_rig, arch, cuts):
    assert make_rig(arch).staged().self_test(cuts) == 0.0


def test_self_test_leaves_the_plan_as_it_was(make_rig):
    rig = make_rig("llama")
    staged = rig.staged()
    staged.set_plan([core.Cut(3, "grid", 0.25)])
    staged.self_test([1, 6])
    assert staged.kv_bytes == 0
    out = staged.prefill(prompt(rig, staged, 3, (4, 4), 3))
    assert len(out["kept"][0]) == 4


def test_facts_of_the_model(make_rig):
    staged = make_rig("qwen3vl").staged()
    assert (staged.n_layer, staged.n_vocab, staged.mrope) == (8, 512, True)
    assert staged.n_embd_inp == 4 * 128, "deepstack: features for three layers follow"
    assert staged.devices == ["CPU"]
