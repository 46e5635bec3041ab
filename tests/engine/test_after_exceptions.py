"""Whatever ends a caption, the next ones are those of a fresh engine, alone and together."""

import signal

import numpy as np
import pytest

from atp_cpp import _core as core
from support.batch_runs import alone, encoded, facts, reserve_for

PLAN = [core.Cut(2, "grid", 0.5)]


@pytest.fixture(scope="module")
def expected(make_engine, pictures):
    with_plan = make_engine("llama", n_ctx=1024)
    made = alone(with_plan, pictures[:2], [12, 12], PLAN)
    with_plan.close()
    return made


def prompt(engine):
    return engine.info.media_marker + " say"


def in_callback(engine, picture):
    with pytest.raises(ZeroDivisionError):
        engine.generate(prompt(engine), [picture], n_predict=9, on_token=lambda text: 1 / 0)


def in_the_truth_of_an_answer(engine, picture):
    with pytest.raises(ValueError, match="ambiguous"):
        engine.generate(prompt(engine), [picture], on_token=lambda text: np.zeros(2))


def in_policy(engine, picture):
    def broken(tokens):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.generate(prompt(engine), [picture], plan=[core.Cut(2, broken)])


def in_grammar(engine, picture):
    with pytest.raises(core.StageError, match="its vocabulary does not have"):
        engine.generate(prompt(engine), [picture], grammar='root ::= "ab" [\\uD800]')


def in_a_step_by_ctrl_c(engine, picture):
    def ring(number, frame):
        raise KeyboardInterrupt

    def for_ever():
        while True:
            engine.generate(prompt(engine), [picture], n_predict=900)

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            for_ever()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def for_nan_in_the_image(engine, picture):
    sequence = engine.encode(prompt(engine), [picture])
    embd = np.full_like(sequence.embd, np.nan)
    engine.set_plan([])
    bad = engine.encode(prompt(engine), [picture], embd=embd)
    engine.reserve([400], 2)
    with pytest.raises(core.ImageError, match="no numbers"):
        engine.start(bad)


@pytest.mark.parametrize(
    "fails",
    [in_callback, in_the_truth_of_an_answer, in_policy, in_grammar, in_a_step_by_ctrl_c,
     for_nan_in_the_image],
)  # fmt: skip
def test_after_an_exception(make_engine, pictures, expected, fails):
    engine = make_engine("llama", n_ctx=1024)
    fails(engine, pictures[2])
    engine.set_plan(PLAN)
    sequences = encoded(engine, pictures[:2])
    reserve_for(engine, sequences, [12, 12], 2)
    live = {engine.start(seq, n_predict=12).slot: k for k, seq in enumerate(sequences)}
    results = {}
    while live:
        results |= {live.pop(slot): facts(result) for slot, result in engine.step()}
    assert [results[0], results[1]] == expected
    fails(engine, pictures[2])
    assert alone(engine, pictures[:2], [12, 12], PLAN) == expected
    engine.close()
