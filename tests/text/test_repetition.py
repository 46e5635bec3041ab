"""Loops at the end of a caption: what is one, what is not yet one, and how soon it is found."""

import random

import pytest

from atp_cpp._core import Engine, find_repetition
from atp_cpp.models.files import model_files
from atp_cpp.options.plan import SamplingConfig

LONGEST, LEAST, ROUNDS = 64, 64, 3


def needed(period):
    """Tokens of a loop before it is taken for one."""
    return max(LEAST, ROUNDS * period)


def text(line):
    """One token a character, as a byte-level tokeniser in the worst case."""
    return [ord(c) for c in line]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "a cat",
        "-" * 63,
        "| --- | --- | --- | --- | --- | --- | --- | --- | ---",
        "ha " * 21,
        ", ".join(str(i) for i in range(1, 400)),
        "\n".join(f"{i}. a cat" for i in range(1, 100)),
        "The cat sits on the mat in the room. " * 2 + "The dog sits on the mat. " * 2,
        "01" * 31,
    ],
)
def test_these_are_no_loops(line):
    assert find_repetition(text(line)) is None


@pytest.mark.parametrize(
    ("line", "start", "period"),
    [
        ("-" * 64, 0, 1),
        ("A dog. " + "ha " * 30, 6, 3),  # from the space before
        ("x" + "01" * 32, 1, 2),
        ("Yes. " + "The cat sits on the mat. " * 4, 3, 25),
    ],
)
def test_these_are_loops(line, start, period):
    assert find_repetition(text(line)) == (start, period)


@pytest.mark.parametrize("period", range(1, LONGEST + 1))
def test_every_cycle_is_found_at_a_known_token(period):
    rng = random.Random(period)
    for _ in range(20):
        before = [1000 + i for i in range(rng.randrange(200))]  # no token twice
        cycle = rng.sample(range(1000), period)
        tokens = [*before, *cycle * (1 + needed(period) // period)]
        found_at = len(before) + needed(period)
        assert find_repetition(tokens[:found_at]) == (len(before), period)
        assert find_repetition(tokens[: found_at - 1]) is None
        assert find_repetition(tokens) == (len(before), period)


def test_a_longer_cycle_is_none():
    cycle = list(range(LONGEST + 1))
    assert find_repetition(cycle * 20) is None


@pytest.mark.parametrize("n_vocab", [4, 10, 1000])
def test_random_text_has_no_loop(n_vocab):
    rng = random.Random(n_vocab)
    for _ in range(20):
        assert find_repetition([rng.randrange(n_vocab) for _ in range(3000)]) is None


def test_one_other_token_breaks_a_loop():
    rng = random.Random(1)
    for period in (1, 2, 7, 30):
        tokens = list(range(period)) * 40
        tokens = tokens[: needed(period)]
        tokens[rng.randrange(period, len(tokens) - period)] = 5000
        assert find_repetition(tokens) is None


@pytest.fixture(scope="module")
def looping():
    """(generate, answer): the demo model, made to go on where it would end; its greedy answer."""
    model, mmproj = model_files(None, None)
    engine = Engine(str(model), str(mmproj), n_threads=1)

    def generate(**options):
        options = {"n_predict": 200, "grammar": "root ::= [ -~]{500}"} | options
        return engine.generate("Describe the image.", [], **options)

    yield generate, generate()
    engine.close()


def test_a_loop_of_a_model_ends_its_caption(looping):
    generate, whole = looping
    start, period = find_repetition(whole.tokens)
    result = generate(stop_on_repetition=True)
    assert result.finish_reason == "repetition"
    assert result.tokens == whole.tokens[: start + period]
    assert whole.text.startswith(result.text)
    assert result.report.n_decoded == start + needed(period)
    assert whole.finish_reason == "stop"


def test_a_caption_without_loop_is_the_same(looping):
    generate, _ = looping
    for seed in range(8):
        options = {"n_predict": 60, "temp": 1.0, "seed": seed}
        plain = generate(**options)
        watched = generate(stop_on_repetition=True, **options)
        assert (plain.text, plain.tokens) == (watched.text, watched.tokens)
        assert plain.finish_reason == watched.finish_reason


def test_on_token_gets_the_front_of_it_and_more(looping):
    generate, whole = looping
    shown = []
    result = generate(stop_on_repetition=True, on_token=shown.append)
    assert "".join(shown).startswith(result.text)
    assert whole.text.startswith("".join(shown))


def test_sampling_says_so():
    assert SamplingConfig(stop_on_repetition=True).engine_options()["stop_on_repetition"] is True
    assert SamplingConfig().engine_options()["stop_on_repetition"] is False
