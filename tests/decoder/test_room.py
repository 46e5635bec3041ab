"""Room in the common caches: counted before it is taken, given back when a caption ends."""

import numpy as np
import pytest

from atp_cpp import _core as core
from support.batch_runs import facts, prompt_of, reserve_for, run
from support.rig import EXACT
from tiny_models import DecoderShape
from tiny_models.decoders import decoder_metadata
from tiny_models.gguf_file import matrix, norm, vector, write_gguf

CUTS = [(2, "grid", 0.5), (5, "fastv", 0.2)]
PLANS = {
    "whole": [],
    "shares": CUTS,
    "none and random": [(1, "none"), (3, "random", 0.3, 7)],
    "before all": [(0, "grid", 0.25), (4, "fastv", 0.1)],
}


def plan_of(name):
    return [core.Cut(*cut) for cut in PLANS[name]]


@pytest.mark.parametrize("plan", PLANS)
def test_what_a_caption_takes_is_known_before(make_engine, pictures, arch, plan):
    engine = make_engine(arch)
    engine.set_plan(plan_of(plan))
    sequences = [engine.encode(prompt_of(engine, n), pictures[:n]) for n in (1, 2)]
    reserve_for(engine, sequences, [9, 9], 2)
    before = engine.free_cells()
    for seq in sequences:
        started = engine.start(seq, n_predict=9)
        n_shared = seq.image_rows[0]  # the text before the image
        assert started.n_cells == [n - n_shared for n in engine.expect(seq, 9)]
        if seq is sequences[0]:
            before = [n - n_shared for n in before]
        before = [a - b for a, b in zip(before, started.n_cells, strict=True)]
        assert engine.free_cells() == before
    engine.close()


def test_a_policy_that_nobody_knows_is_expected_to_keep_all(make_engine, pictures):
    engine = make_engine("llama")
    engine.set_plan([core.Cut(2, "grid", 0.5), core.Cut(4, lambda tokens: tokens["index"][:3])])
    seq = engine.encode(prompt_of(engine), pictures[:1])
    n_text = seq.n_rows - seq.n_image_tokens
    most = [seq.n_rows, n_text + 32, n_text + 32]
    assert engine.expect(seq, 5) == [n + 5 for n in most]
    engine.reserve([2 * n for n in most], 2)
    taken = engine.start(seq, n_predict=5).n_cells
    assert taken == [n + 5 - seq.image_rows[0] for n in (seq.n_rows, n_text + 32, n_text + 3)]
    engine.close()


def test_a_prompt_that_ends_with_its_image_may_keep_one_more(make_engine, pictures):
    engine = make_engine("llama", flash_attn="off")
    engine.set_plan([core.Cut(2, "fastv", 0.1)])
    for picture in pictures:
        seq = engine.encode("look: " + engine.info.media_marker, [picture])
        expected = engine.expect(seq, 5)
        engine.reserve(expected, 1)
        started = engine.start(seq, n_predict=5)
        n_text = seq.n_rows - seq.n_image_tokens
        assert started.n_cells[1] + seq.image_rows[0] in (n_text + 6 + 5, n_text + 7 + 5)
        assert expected[1] == n_text + 7 + 5
        engine.reset()
    engine.close()


def test_without_room_nothing_changes(make_engine, pictures, arch):
    engine = make_engine(arch, **EXACT)
    engine.set_plan(plan_of("shares"))
    images = [picture + np.uint8(1) for picture in pictures]
    sequences = [engine.encode(prompt_of(engine), [image]) for image in images]
    expected = [
        facts(engine.generate(prompt_of(engine), [image], plan=plan_of("shares"), n_predict=9))
        for image in images
    ]
    need = engine.expect(sequences[0], 9)
    for missing in (0, 2):  # the stage that is too small for a third
        cells = [4 * n for n in need]
        cells[missing] = 2 * need[missing]
        engine.reserve(cells, 3)
        live = {engine.start(seq, n_predict=9).slot: k for k, seq in enumerate(sequences[:2])}
        free, n_shared = engine.free_cells(), sequences[2].image_rows[0]
        # one more than there is room for
        n_predict = max(9, free[missing] + n_shared - need[missing] + 10)
        refused = engine.start(sequences[2], n_predict=n_predict)
        assert (refused.slot, refused.ended, engine.n_live) == (-1, False, 2)
        assert refused.n_cells[missing] > free[missing]
        assert engine.free_cells() == free
        results = {}
        while live:
            results |= {live.pop(slot): facts(r) for slot, r in engine.step()}
        assert [results[0], results[1]] == expected[:2]
        assert engine.start(sequences[2], n_predict=n_predict).slot >= 0
        engine.reset()
    engine.close()


def test_no_more_than_n_parallel(make_engine, pictures):
    engine = make_engine("llama")
    seq = engine.encode(prompt_of(engine), pictures[:1])
    engine.reserve([400], 2)
    slots = [engine.start(seq, n_predict=9).slot for _ in range(3)]
    assert slots == [0, 1, -1]
    engine.drop(0)
    assert engine.start(seq, n_predict=9).slot == 0
    engine.close()


def test_room_is_given_back(make_engine, pictures, arch):
    engine = make_engine(arch)
    engine.set_plan(plan_of("shares"))
    sequences = [engine.encode(prompt_of(engine), [picture]) for picture in pictures]
    reserve_for(engine, sequences, [9] * 3, 2)
    run(engine, sequences, [9] * 3)
    after_one_run = engine.free_cells()
    run(engine, sequences * 3, [9] * 9)
    assert engine.free_cells() == after_one_run
    for _ in range(2):
        engine.start(sequences[0], n_predict=9)
    engine.step()
    engine.reset()
    assert (engine.n_live, engine.free_cells()) == (0, after_one_run)
    assert engine.step() == []
    engine.close()


def test_text_of_other_prompts_makes_way(make_engine, pictures):
    engine = make_engine("llama", **EXACT)
    long = engine.encode(prompt_of(engine, before="these are many words " * 6), pictures[:1])
    other = engine.encode(prompt_of(engine, before=""), pictures[:1])
    expected = facts(engine.generate(prompt_of(engine, before=""), pictures[:1], n_predict=9))
    engine.reserve(engine.expect(long, 9), 1)
    (cells,) = engine.free_cells()
    run(engine, [long], [9])
    assert engine.free_cells()[0] == cells - long.image_rows[0]
    n_predict = cells - other.n_rows  # all of them
    assert engine.free_cells()[0] < other.n_rows + n_predict
    started = engine.start(other, n_predict=n_predict)
    assert started.slot == 0
    assert engine.free_cells() == [0]
    engine.reset()
    assert facts(run(engine, [other], [9])[0]) == expected
    engine.close()


def test_kv_bytes_are_those_of_its_cells(make_engine, pictures):
    engine = make_engine("llama")
    engine.set_plan(plan_of("shares"))
    per_layer = 2 * 64 * 2  # k and v, 64 values, f16
    assert engine.cell_bytes() == [2 * per_layer, 3 * per_layer, 3 * per_layer]
    assert engine.cell_step == 64
    seq = engine.encode(prompt_of(engine), pictures[:1])
    reserve_for(engine, [seq], [9], 1)
    (result,) = run(engine, [seq], [9])
    n_cells = [n - seq.image_rows[0] for n in engine.expect(seq, 9)]
    sizes = zip(n_cells, engine.cell_bytes(), strict=True)
    assert result.report.kv_bytes == sum(n * size for n, size in sizes)
    times = (result.report.t_encode, result.report.t_prefill, result.report.t_decode)
    assert times[0] == seq.t_encode
    assert min(times) > 0.0
    engine.close()


REFUSED = {
    "a stage too few": ([100, 100], 2, "cells for 3 stages, got 2"),
    "no cells": ([100, 0, 100], 2, "a stage needs 1 to 1073741824 cells, got 0"),
    "nobody": ([100] * 3, 0, "n_parallel must be 1 to 255, got 0"),
    "too many": ([100] * 3, 256, "n_parallel must be 1 to 255, got 256"),
}


@pytest.mark.parametrize(("cells", "n_parallel", "reason"), REFUSED.values(), ids=REFUSED)
def test_room_that_cannot_be(make_engine, pictures, cells, n_parallel, reason):
    engine = make_engine("llama")
    engine.set_plan(plan_of("shares"))
    seq = engine.encode(prompt_of(engine), pictures[:1])
    with pytest.raises(core.StageError, match="no room for captions yet; reserve some"):
        engine.start(seq)
    with pytest.raises(core.StageError, match=reason):
        engine.reserve(cells, n_parallel)
    engine.reserve([200] * 3, 1)
    assert engine.start(seq, n_predict=3).slot == 0
    engine.close()


def test_one_thing_at_a_time(make_engine, pictures):
    engine = make_engine("llama", **EXACT)
    expected = facts(engine.generate(prompt_of(engine), pictures[:1], n_predict=9))
    seq = engine.encode(prompt_of(engine), pictures[:1])
    engine.reserve([400], 2)
    engine.start(seq, n_predict=9)
    for call in (
        lambda: engine.generate("a", []),
        lambda: engine.set_plan([]),
        lambda: engine.reserve([400], 2),
    ):
        with pytest.raises(core.StageError, match="while 1 captions are under way; step until"):
            call()
    engine.reset()
    # a caption alone in between, with a plan of its own, changes nothing
    engine.generate(prompt_of(engine), pictures[:1], plan=[core.Cut(3, "grid", 0.5)], n_predict=2)
    assert facts(run(engine, [seq], [9])[0]) == expected
    engine.close()


def test_an_image_larger_than_a_ubatch_where_rows_see_each_other(make_engine, pictures):
    """gemma3's images are one ubatch: windows need room for it, and are made larger once."""
    engine = make_engine("gemma3", n_ubatch=8, **EXACT)
    expected = facts(engine.generate(prompt_of(engine), pictures[:1], n_predict=9))
    seq = engine.encode(prompt_of(engine), pictures[:1])
    reserve_for(engine, [seq], [9], 3)
    assert [facts(r) for r in run(engine, [seq] * 5, [9] * 5)] == [expected] * 5
    engine.close()


@pytest.fixture(scope="module")
def mamba(tiny_model, tmp_path_factory):
    """A random model of four state-space layers: a memory that is no KV cache."""
    n_embd, n_inner, n_state, n_conv, n_dt = 64, 128, 8, 4, 4
    shape = DecoderShape(arch="llama", n_layer=4, n_embd=n_embd)
    kept = ("general", "tokenizer", "llama.context", "llama.embed", "llama.block", "llama.vocab")
    metadata = {
        key.replace("llama.", "mamba.", 1) if key.startswith("llama.") else key: value
        for key, value in decoder_metadata(shape).items()
        if key.startswith(kept)
    } | {
        "mamba.ssm.conv_kernel": n_conv,
        "mamba.ssm.inner_size": n_inner,
        "mamba.ssm.state_size": n_state,
        "mamba.ssm.time_step_rank": n_dt,
        "mamba.attention.layer_norm_rms_epsilon": 1e-6,
    }
    tensors = [
        matrix("token_embd.weight", shape.n_vocab, n_embd, 8.0),
        norm("output_norm.weight", n_embd),
        matrix("output.weight", shape.n_vocab, n_embd, 3.0),
    ]
    for il in range(shape.n_layer):
        pre = f"blk.{il}."
        tensors += [
            norm(pre + "attn_norm.weight", n_embd),
            matrix(pre + "ssm_in.weight", 2 * n_inner, n_embd),
            matrix(pre + "ssm_conv1d.weight", n_inner, n_conv, keep_f32=True),
            vector(pre + "ssm_conv1d.bias", n_inner, 0.1),
            matrix(pre + "ssm_x.weight", n_dt + 2 * n_state, n_inner),
            matrix(pre + "ssm_dt.weight", n_inner, n_dt),
            vector(pre + "ssm_dt.bias", n_inner, 0.1),
            matrix(pre + "ssm_a", n_inner, n_state, -0.1, keep_f32=True),
            vector(pre + "ssm_d", n_inner, 1.0),
            matrix(pre + "ssm_out.weight", n_embd, n_inner),
        ]
    path = tmp_path_factory.mktemp("mamba") / "mamba.gguf"
    write_gguf(path, arch="mamba", metadata=metadata, tensors=tensors, weight_type="f32", seed=1)
    return path


def test_another_kind_of_memory_takes_one_at_a_time(mamba):
    engine = core.Engine(str(mamba), n_ctx=512, n_threads=1)
    assert not engine.info.can_batch
    prompts = ["abc def", "abc xyz and more", "q"]
    expected = [facts(engine.generate(p, [], n_predict=9)) for p in prompts]
    assert len({text for (text, *_), *_ in expected}) == 3
    with pytest.raises(core.StageError, match="n_parallel must be 1 to 1 for architecture 'mamba'"):
        engine.reserve([100], 2)
    engine.reserve([100], 1)
    sequences = [engine.encode(p, []) for p in prompts]
    plain = core.Reference(core.ModelParams(str(mamba), n_ctx=512, n_threads=1))
    for seq, ((_, tokens, *_), *_) in zip(sequences, expected, strict=True):
        assert tokens[0] == np.argmax(plain.prefill(seq)), "its state is cleared in between"
    assert engine.start(sequences[0], n_predict=9).slot == 0
    assert engine.start(sequences[1], n_predict=9).slot == -1
    engine.reset()
    for _ in range(2):
        assert [facts(r) for r in run(engine, sequences, [9] * 3)] == expected
    engine.close()
