"""Captions under way together: each is what it is alone, whatever the others do."""

import numpy as np
import pytest

from atp_cpp import _core as core
from rig import EXACT

pytest_plugins = ["fixtures_engine"]

QUESTION = " what is in the picture?"


def prompt_of(engine, n_images=1, before="a picture: "):
    return before + engine.info.media_marker * n_images + QUESTION


def run(engine, sequences, n_predict, **options):
    """All of them, as many at once as there is room for; results in the order given."""
    results, live, todo = {}, {}, list(range(len(sequences)))
    while todo or live:
        while todo:
            k = todo[0]
            started = engine.start(sequences[k], n_predict=n_predict[k], **options)
            if started.slot < 0 and not started.ended:
                assert live, "there must be room for one"
                break
            todo.pop(0)
            if started.ended:
                results[k] = started.result
            else:
                live[started.slot] = k
        for slot, result in engine.step():
            results[live.pop(slot)] = result
    return [results[k] for k in range(len(sequences))]


def reserve_for(engine, sequences, n_predict, n_parallel):
    """Room for n_parallel of the largest."""
    expected = [engine.expect(seq, n) for seq, n in zip(sequences, n_predict, strict=True)]
    largest = [max(stage) for stage in zip(*expected, strict=True)]
    engine.reserve([n_parallel * n for n in largest], n_parallel)


@pytest.mark.parametrize("cuts", [[], [(2, "grid", 0.5), (5, "fastv", 0.2)]], ids=["whole", "cut"])
@pytest.mark.parametrize("n_parallel", [1, 3])
def test_each_caption_is_that_of_generate(make_engine, pictures, arch, cuts, n_parallel):
    engine = make_engine(arch, **EXACT)
    prompt, n_predict = prompt_of(engine), [5, 17, 9, 1, 12]
    images = [pictures[k % 3] + np.uint8(k) for k in range(5)]
    plan = [core.Cut(*cut) for cut in cuts]
    alone = [
        engine.generate(prompt, [image], plan=plan, n_predict=n)
        for image, n in zip(images, n_predict, strict=True)
    ]
    engine.set_plan(plan)
    sequences = [engine.encode(prompt, [image]) for image in images]
    reserve_for(engine, sequences, n_predict, n_parallel)
    together = run(engine, sequences, n_predict)
    for expected, measured in zip(alone, together, strict=True):
        assert measured.tokens == expected.tokens
        assert measured.text == expected.text
        assert measured.finish_reason == expected.finish_reason
        assert measured.report.kept == expected.report.kept
    assert engine.n_live == 0
    engine.close()
