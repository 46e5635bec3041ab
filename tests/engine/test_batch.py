"""Captions under way together: each is what it is alone, whatever the others do."""

import itertools
import signal
import threading

import numpy as np
import pytest

from atp_cpp import _core as core
from support.batch_runs import alone, encoded, facts, prompt_of, reserve_for, run
from support.rig import EXACT

CUTS = [(2, "grid", 0.5), (5, "fastv", 0.2)]


def some_pictures(pictures, n):
    return [pictures[k % 3] + np.uint8(k) for k in range(n)]


@pytest.mark.parametrize("cuts", [[], CUTS], ids=["whole", "cut"])
@pytest.mark.parametrize("n_parallel", [1, 3])
def test_each_caption_is_that_of_generate(make_engine, pictures, arch, cuts, n_parallel):
    engine = make_engine(arch, **EXACT)
    n_predict, images = [5, 17, 9, 1, 12], some_pictures(pictures, 5)
    plan = [core.Cut(*cut) for cut in cuts]
    expected = alone(engine, images, n_predict, plan)
    engine.set_plan(plan)
    sequences = encoded(engine, images)
    reserve_for(engine, sequences, n_predict, n_parallel)
    assert [facts(r) for r in run(engine, sequences, n_predict)] == expected
    assert engine.n_live == 0
    engine.close()


def test_in_every_order(make_engine, pictures):
    engine = make_engine("llama", **EXACT)
    n_predict, images = [3, 11, 6, 8], some_pictures(pictures, 4)
    expected = alone(engine, images, n_predict)
    sequences = encoded(engine, images)
    reserve_for(engine, sequences, n_predict, 3)
    for order in itertools.permutations(range(4)):
        results = run(engine, [sequences[k] for k in order], [n_predict[k] for k in order])
        assert [facts(r) for r in results] == [expected[k] for k in order]
    engine.close()


def test_each_draws_with_a_seed_of_its_own(make_engine, pictures):
    engine = make_engine("llama", **EXACT)
    images = some_pictures(pictures[:1], 1) * 4
    options = [{"temp": 1.5, "seed": seed} for seed in range(4)]
    expected = [facts(engine.generate(prompt_of(engine), images[:1], **o)) for o in options]
    assert len({tokens for (_, tokens, *_), *_ in map(_hashable, expected)}) == 4
    sequences = encoded(engine, images)
    reserve_for(engine, sequences, [128] * 4, 4)
    assert [facts(r) for r in run(engine, sequences, [128] * 4, options)] == expected
    engine.close()


def _hashable(fact):
    (text, tokens, *rest), *others = fact
    return (text, tuple(tokens), *rest), *others


def test_stop_strings_and_tokens_that_end_at_once(make_engine, pictures):
    engine = make_engine("llama", **EXACT)
    (seq,) = encoded(engine, pictures[:1])
    whole = engine.generate(prompt_of(engine), pictures[:1], n_predict=12)
    stop = whole.text[4:6]
    expected = engine.generate(prompt_of(engine), pictures[:1], n_predict=12, stop=[stop])
    reserve_for(engine, [seq], [12], 1)
    assert facts(run(engine, [seq], [12], [{"stop": [stop]}])[0]) == facts(expected)
    for n_predict in (0, 1):
        started = engine.start(seq, n_predict=n_predict)
        assert (started.slot, started.ended) == (-1, True)
        assert started.result.tokens == whole.tokens[:n_predict]
        assert (started.result.finish_reason, engine.n_live) == ("length", 0)
    engine.close()


def test_a_caption_after_many_is_that_of_a_new_engine(make_engine, pictures, arch):
    engine = make_engine(arch, **EXACT)
    images, n_predict = some_pictures(pictures, 12), [4 + k % 5 for k in range(12)]
    plan = [core.Cut(*cut) for cut in CUTS]
    engine.set_plan(plan)
    sequences = encoded(engine, images)
    reserve_for(engine, sequences, n_predict, 4)
    last = run(engine, sequences, n_predict)[-1]
    fresh = make_engine(arch, **EXACT)
    assert [facts(last)] == alone(fresh, images[-1:], n_predict[-1:], plan)
    engine.close()
    fresh.close()


def test_one_dropped_in_the_middle_leaves_the_others_as_they_are(make_engine, pictures, arch):
    engine = make_engine(arch, **EXACT)
    images, n_predict = some_pictures(pictures, 4), [12] * 4
    expected = alone(engine, images, n_predict)
    sequences = encoded(engine, images)
    reserve_for(engine, sequences, n_predict, 3)
    live = {engine.start(seq, n_predict=12).slot: k for k, seq in enumerate(sequences[:3])}
    results = {}
    for i in range(20):
        if i == 3:
            (middle,) = (slot for slot, k in live.items() if k == 1)
            engine.drop(middle)
            del live[middle]
            live[engine.start(sequences[3], n_predict=12).slot] = 3
        for slot, result in engine.step():
            results[live.pop(slot)] = facts(result)
    assert results == {k: expected[k] for k in (0, 2, 3)}
    with pytest.raises(core.StageError, match="no caption is under way in slot 1"):
        engine.drop(1)
    engine.close()


def test_one_that_fails_costs_itself_only(make_engine, pictures):
    engine = make_engine("llama", **EXACT)

    def now_and_then(tokens):
        if tokens["seed"] == 0 and failing:
            raise ZeroDivisionError
        return tokens["index"][::3]

    plan = [core.Cut(2, "grid", 0.5), core.Cut(5, now_and_then)]
    failing = []
    expected = alone(engine, pictures[:2], [12, 12], plan)
    engine.set_plan(plan)
    good = encoded(engine, pictures[:2])
    reserve_for(engine, good, [300, 300], 3)
    live = {engine.start(seq, n_predict=12).slot: k for k, seq in enumerate(good)}
    free, results = engine.free_cells(), {}
    failing.append(True)
    with pytest.raises(ZeroDivisionError):
        engine.start(good[0], n_predict=5)
    with pytest.raises(core.StageError, match="n_predict must be at least 0, got -1"):
        engine.start(good[0], n_predict=-1)
    with pytest.raises(core.StageError, match="the prompt is empty"):
        engine.start(core.Sequence(good[0].embd.shape[1]))
    assert (engine.free_cells(), engine.n_live) == (free, 2)
    while live:
        results |= {live.pop(slot): facts(result) for slot, result in engine.step()}
    assert [results[0], results[1]] == expected
    engine.close()


def test_ctrl_c_leaves_an_engine_that_captions_as_before(make_engine, pictures):
    engine = make_engine("llama", **EXACT)
    (seq,) = encoded(engine, pictures[:1])
    expected = alone(engine, pictures[:1], [12])
    reserve_for(engine, [seq], [300], 4)
    armed, n_interrupted = [], 0

    def interrupt(number, frame):
        if armed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for attempt in range(20):
            for seed in range(4):
                engine.start(seq, n_predict=300, temp=1.5, seed=4 * attempt + seed)
            n_live = 4
            try:
                armed.append(True)
                signal.setitimer(signal.ITIMER_REAL, 0.004)
                while n_live:
                    engine.step()
                    n_live = engine.n_live
            except KeyboardInterrupt:
                n_interrupted += 1
            armed.clear()
            engine.reset()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert n_interrupted > 0
    assert [facts(r) for r in run(engine, [seq], [12])] == expected
    engine.close()


def test_images_are_encoded_while_captions_go_on(make_engine, pictures):
    engine = make_engine("llama", **EXACT)
    images, n_predict = some_pictures(pictures, 12), [20] * 12
    expected = alone(engine, images, n_predict)
    sequences = []
    first = encoded(engine, images[:4])
    reserve_for(engine, first, n_predict[:4], 4)
    thread = threading.Thread(target=lambda: sequences.extend(encoded(engine, images)))
    thread.start()
    while thread.is_alive():
        assert [facts(r) for r in run(engine, first, n_predict[:4])] == expected[:4]
    thread.join()
    assert [facts(r) for r in run(engine, sequences, n_predict)] == expected
    engine.close()


def test_embeddings_may_be_brought(make_engine, pictures, arch):
    engine = make_engine(arch)
    prompt = prompt_of(engine, 2)
    first = engine.encode(prompt, pictures[:2])
    assert first.t_encode > 0.0
    again = engine.encode("other text" + prompt, pictures[:2], embd=first.embd)
    assert again.t_encode == 0.0
    assert np.array_equal(again.embd, first.embd)
    assert again.grids == first.grids
    n = len(first.embd)
    for wrong in (first.embd[:-1], first.embd[: n // 2]):
        with pytest.raises(core.ImageError, match=rf"of {len(wrong)} image tokens were given"):
            engine.encode(prompt, pictures[:2], embd=wrong)
    with pytest.raises(core.ImageError, match=rf"of {n} image tokens .* has {n // 2}; encode"):
        engine.encode(prompt_of(engine), pictures[:1], embd=first.embd)
    with pytest.raises(core.ImageError, match=r"are 7 wide, this model takes"):
        engine.encode(prompt, pictures[:2], embd=first.embd[:, :7])
    with pytest.raises(core.ImageError, match=r"n_embd_inp\], got \[3\]"):
        engine.encode(prompt, pictures[:2], embd=np.zeros(3, np.float32))
    engine.close()
