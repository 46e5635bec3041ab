"""What a caller can do to a running engine: watch, stop, interrupt, share, and misuse it."""

import signal
import threading
import time

import numpy as np
import pytest

from atp_cpp import _core as core


@pytest.fixture(scope="module")
def engine(make_engine):
    made = make_engine("llama", n_ctx=4096)
    yield made
    made.close()


def prompt(engine):
    return engine.info.media_marker + " say"


def test_pieces_are_the_text_even_where_it_is_no_utf8(engine, pictures):
    wild = {"temp": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    for seed in range(3):
        pieces = []
        result = engine.generate(
            prompt(engine),
            pictures[:1],
            n_predict=600,
            seed=seed,
            on_token=lambda text, pieces=pieces: pieces.append(text),
            **wild,
        )
        assert "".join(pieces) == result.text
        assert "\N{REPLACEMENT CHARACTER}" in result.text, "bytes that are no UTF-8 did come"
        assert all(pieces)


def test_a_stop_string_ends_the_text_and_is_never_shown(engine, pictures):
    whole = engine.generate(prompt(engine), pictures[:1], n_predict=40).text
    for stop in (whole[10:13], whole[7:16], whole[20]):
        pieces = []
        result = engine.generate(
            prompt(engine),
            pictures[:1],
            n_predict=40,
            stop=["never there", stop, ""],
            on_token=lambda text, pieces=pieces: pieces.append(text),
        )
        assert result.finish_reason == "stop"
        assert result.text == whole[: whole.index(stop)] == "".join(pieces)


def test_what_could_have_been_a_stop_string_is_shown_in_the_end(engine, pictures):
    whole = engine.generate(prompt(engine), pictures[:1], n_predict=20).text
    pieces = []
    result = engine.generate(
        prompt(engine),
        pictures[:1],
        n_predict=20,
        stop=[whole[-3:] + "\0"],
        on_token=pieces.append,
    )
    assert result.text == "".join(pieces) == whole


def test_sampling_repeats_by_seed(engine, pictures):
    def tokens(**options):
        return engine.generate(prompt(engine), pictures[:1], n_predict=12, **options).tokens

    assert tokens(temp=1.0, seed=5) == tokens(temp=1.0, seed=5)
    assert len({tuple(tokens(temp=1.5, seed=s)) for s in range(4)}) > 1
    assert tokens(temp=1.5, top_k=1, seed=6) == tokens()
    strange = [float("nan"), float("inf"), 1e-40, -1.0]
    assert all(len(tokens(temp=t)) == 12 for t in strange)
    assert len(tokens(temp=1.0, top_p=-1.0, top_k=-3, min_p=2.0)) == 12


@pytest.mark.parametrize("answer", [None, True, 1, "yes", np.True_])
def test_a_callback_that_does_not_say_no_goes_on(engine, pictures, answer):
    result = engine.generate(
        prompt(engine), pictures[:1], n_predict=5, on_token=lambda text: answer
    )
    assert result.finish_reason == "length"


@pytest.mark.parametrize("answer", [False, 0, "", np.False_])
def test_a_callback_that_says_no_ends_the_caption(engine, pictures, answer):
    result = engine.generate(
        prompt(engine), pictures[:1], n_predict=5, on_token=lambda text: answer
    )
    assert (result.finish_reason, len(result.tokens)) == ("cancelled", 1)


class Alarm(Exception):
    """Raised by the signal handler, as KeyboardInterrupt is by Ctrl-C's."""


@pytest.fixture
def alarm():
    """`alarm(seconds)`: a signal arrives then, and its handler raises Alarm."""

    def ring(signum, frame):
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_signal_stops_decoding_within_a_step(engine, pictures, alarm):
    alarm(0.15)
    start = time.monotonic()
    with pytest.raises(Alarm):
        engine.generate(prompt(engine), pictures[:1], n_predict=4000)
    assert time.monotonic() - start < 5.0, "4000 tokens take longer"
    assert engine.generate(prompt(engine), pictures[:1], n_predict=3).report.n_decoded == 3


def test_a_signal_stops_prefill_too(engine, alarm):
    def prefill_for_ever():
        while True:
            engine.generate("b" * 3500, [], n_predict=0)

    alarm(0.05)
    with pytest.raises(Alarm):
        prefill_for_ever()
    assert engine.generate("b", [], n_predict=3).report.n_decoded == 3


def test_threads_take_turns(engine, pictures):
    expected = engine.generate(prompt(engine), pictures[:1], n_predict=30).tokens
    results = []

    def work():
        results.append(engine.generate(prompt(engine), pictures[:1], n_predict=30).tokens)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_close_waits_for_the_caption_that_runs(make_engine, pictures):
    engine = make_engine("llama", n_ctx=1024)
    running, results = threading.Event(), []

    def work():
        result = engine.generate(
            prompt(engine), pictures[:1], n_predict=200, on_token=lambda text: running.set()
        )
        results.append(result.report.n_decoded)

    thread = threading.Thread(target=work)
    thread.start()
    running.wait()
    engine.close()
    thread.join()
    assert results == [200]


@pytest.mark.parametrize("misuse", ["generate", "close"])
def test_a_callback_cannot_use_its_own_engine(engine, pictures, misuse):
    def come_back(text):
        getattr(engine, misuse)(*(("a", []) if misuse == "generate" else ()))

    with pytest.raises(core.StageError, match="busy with the caption whose callback this is"):
        engine.generate(prompt(engine), pictures[:1], n_predict=3, on_token=come_back)
    plan = [core.Cut(2, come_back)]
    with pytest.raises(core.StageError, match="busy"):
        engine.generate(prompt(engine), pictures[:1], n_predict=3, plan=plan)
    assert engine.generate(prompt(engine), pictures[:1], n_predict=3).report.n_decoded == 3


def test_a_callback_may_ask_what_the_engine_is(engine, pictures):
    seen = []
    engine.generate(
        prompt(engine),
        pictures[:1],
        n_predict=2,
        on_token=lambda text: seen.append(engine.info.arch),
    )
    assert seen == ["llama", "llama"]


def test_a_closed_engine_says_so(make_engine):
    engine = make_engine("llama")
    engine.close()
    engine.close()
    with pytest.raises(core.ModelError, match="this engine is closed; make a new one"):
        engine.generate("a", [])
    with pytest.raises(core.ModelError, match="this engine is closed"):
        _ = engine.info


def test_more_tokens_than_the_context_has_are_cut_to_what_is_left(make_engine, pictures):
    engine = make_engine("llama", n_ctx=100)
    sequence = engine.encode(prompt(engine), pictures[:1])
    n_left = 100 - sequence.n_pos
    assert n_left > 3
    result = engine.generate(prompt(engine), pictures[:1], n_predict=100_000)
    assert (len(result.tokens), result.finish_reason) == (n_left, "length")
    fits = engine.generate(prompt(engine), pictures[:1], n_predict=n_left)
    assert (fits.tokens, fits.finish_reason) == (result.tokens, "length")
    engine.set_plan([])
    engine.reserve(engine.expect(sequence, 100_000), 1)
    engine.start(sequence, n_predict=100_000)
    ended = []
    while not ended:
        ended = engine.step()
    assert (ended[0][1].tokens, ended[0][1].finish_reason) == (result.tokens, "length")
    with pytest.raises(core.StageError, match="raise n_ctx"):
        engine.generate("b" * 200, [], n_predict=1)
    engine.close()


def test_penalties(engine, pictures):
    """Greedy with a large presence penalty draws no token twice; with 0 and 1 nothing changes."""

    def tokens(**options):
        return engine.generate(prompt(engine), pictures[:1], n_predict=40, **options).tokens

    plain = tokens()
    assert len(set(plain)) < 40, "the random model repeats itself"
    assert tokens(repeat_penalty=1.0, presence_penalty=0.0, repeat_last_n=5) == plain
    assert tokens(presence_penalty=1e4, repeat_last_n=0) == plain
    for options in ({"presence_penalty": 1e4}, {"frequency_penalty": 1e4}):
        assert len(set(tokens(**options))) == 40
        assert len(set(tokens(temp=0.5, seed=1, **options))) == 40
    lasting = tokens(presence_penalty=1e4, repeat_last_n=3)
    assert all(lasting[i] not in lasting[max(0, i - 3) : i] for i in range(40))
    assert tokens(repeat_penalty=3.0) != plain
    # a token that the grammar refused was not drawn: it is not held against the answer
    grammar = 'root ::= ("a" | "b")+'
    said = engine.generate(
        prompt(engine), [pictures[0]], n_predict=2, presence_penalty=1e4, grammar=grammar
    ).text
    assert sorted(said) == ["a", "b"]
