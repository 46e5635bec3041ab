"""Answers that follow a grammar: they always do, nothing else changes, and greedy is greedy."""

import json

import numpy as np
import pytest

from atp_cpp import Captioner
from atp_cpp import _core as core
from atp_cpp.models.files import model_files
from atp_cpp.options.json_schema import grammar_of
from atp_cpp.options.plan import SamplingConfig
from support.json_schemas import SCHEMAS
from support.schema_fits import distinct_keys, fits
from tiny_models import DecoderShape

PROMPT = "bcdfghjk"


@pytest.fixture(scope="module")
def engine(make_engine):
    """A tiny model with byte tokens and characters."""
    made = make_engine("llama", n_ctx=1024)
    yield made
    made.close()


@pytest.fixture(scope="module")
def demo():
    """The demo model."""
    model, mmproj = model_files(None, None)
    made = core.Engine(str(model), str(mmproj), n_threads=1)
    yield made
    made.close()


def draws(n):
    """Greedy, then `n` - 1 random draws, flat ones among them."""
    yield {}
    for seed in range(1, n):
        flat = {"top_k": 0, "top_p": 1.0, "min_p": 0.0} if seed % 2 else {}
        yield {"temp": 0.7 + seed % 3, "seed": seed, **flat}


def check(text, finish_reason, schema):
    """One answer; True when it was ended by its grammar."""
    if finish_reason == "length":
        return False
    assert finish_reason == "stop"
    assert fits(json.loads(text, object_pairs_hook=distinct_keys), schema), text
    return True


@pytest.mark.parametrize("name", SCHEMAS)
def test_64_draws_of_a_tiny_model_fit(engine, name):
    grammar = grammar_of(json.dumps(SCHEMAS[name]))
    whole = 0
    for options in draws(64):
        result = engine.generate(PROMPT, [], n_predict=300, grammar=grammar, **options)
        whole += check(result.text, result.finish_reason, SCHEMAS[name])
    assert whole >= 8, "most answers must come to their end for this test to see them"


@pytest.mark.parametrize("name", ["caption", "root enum", "references", "ranges"])
def test_64_draws_of_the_demo_model_fit(demo, name):
    grammar = grammar_of(json.dumps(SCHEMAS[name]))
    whole = 0
    for options in draws(64):
        result = demo.generate(PROMPT, [], n_predict=120, grammar=grammar, **options)
        whole += check(result.text, result.finish_reason, SCHEMAS[name])
    assert whole >= 16


def test_any_characters_stay_valid_over_their_bytes(engine):
    """Random bytes under a grammar of any characters: no half, overlong or surrogate one."""
    grammar = 'root ::= ["] [^\\x00-\\x1F"]{40} ["]'
    wide = 0
    for seed in range(64):
        result = engine.generate(
            PROMPT, [], n_predict=400, grammar=grammar, temp=3.0, top_k=0, top_p=1.0, min_p=0.0,
            seed=seed,
        )  # fmt: skip
        assert "�" not in result.text
        assert (len(result.text), result.finish_reason) == (42, "stop")
        wide += any(ord(c) > 0x7FF for c in result.text)
    assert wide > 10, "characters of three and four bytes must come up"


VOCABULARY = DecoderShape(arch="qwen2").vocabulary.tokens


def test_greedy_takes_the_best_token_that_fits(make_rig, engines):
    """root ::= [a-f]{24}, so that a token fits if it is of these letters and not too long."""
    grammar = "root ::= [a-f]{24}"
    letters_only = "bcdfghjkbcdfghjk"  # no two of them make a longer token
    engine = engines("qwen2")
    result = engine.generate(letters_only, [], n_predict=30, grammar=grammar)
    plain = make_rig("qwen2").plain()
    seq = core.Sequence(0)
    seq.add_text([VOCABULARY.index(c) for c in letters_only])

    def logits():
        last = plain.prefill(seq)
        for i, token in enumerate(result.tokens):
            yield last
            last = plain.decode(token, seq.n_pos + i)

    def letters(token):
        piece = VOCABULARY[token]
        return bytes([int(piece[3:5], 16)]).decode("latin-1") if piece.startswith("<0x") else piece

    text = ""
    unfit = 0
    for row, token in zip(logits(), result.tokens, strict=True):
        order = [int(t) for t in np.argsort(-row.ravel(), kind="stable")]
        fitting = [
            t for t in order if set(letters(t)) <= set("abcdef") and len(text + letters(t)) <= 24
        ]
        assert token == fitting[0]
        unfit += token != order[0]
        text += letters(token)
    assert (result.text, result.finish_reason) == (text, "stop")
    assert unfit > 5, "the grammar must have had something to say"


def test_a_grammar_that_allows_all_changes_nothing(engine):
    anything = "root ::= [^\\x00]*"
    for options in draws(16):
        plain = engine.generate(PROMPT, [], n_predict=40, **options)
        if "�" in plain.text:
            continue  # bytes that are no text, which a grammar never lets through
        same = engine.generate(PROMPT, [], n_predict=40, grammar=anything, **options)
        assert (same.tokens, same.text) == (plain.tokens, plain.text)


def test_a_grammar_at_its_end_ends_the_caption(engine):
    seen = []
    result = engine.generate(
        PROMPT, [], n_predict=9, grammar='root ::= "abc" "d"?', on_token=seen.append
    )
    assert result.text in ("abc", "abcd")
    assert result.finish_reason == "stop"
    assert "".join(seen) == result.text
    nothing = engine.generate(PROMPT, [], n_predict=9, grammar='root ::= ""')
    assert (nothing.text, nothing.finish_reason, nothing.report.n_decoded) == ("", "stop", 0)


def test_length_and_stop_texts_still_hold(engine):
    cut = engine.generate(PROMPT, [], n_predict=2, grammar='root ::= "a" "b" "c" "d" "e" "f" "g"')
    assert cut.finish_reason == "length" and "abcdefg".startswith(cut.text)
    stopped = engine.generate(PROMPT, [], n_predict=99, grammar='root ::= "yes; no"', stop=["; "])
    assert (stopped.text, stopped.finish_reason) == ("yes", "stop")


def test_control_tokens_are_no_text(engine):
    """llama.cpp's grammar reads </s> as four characters; they are not in the answer."""
    for seed in range(32):
        result = engine.generate(
            PROMPT, [], n_predict=60, grammar='root ::= [<>/a-z]{8,20} "."', temp=5.0, top_k=0,
            top_p=1.0, min_p=0.0, seed=seed,
        )  # fmt: skip
        assert result.finish_reason == "length" or 9 <= len(result.text) <= 21


def test_an_invalid_grammar_costs_no_computation(engine):
    with pytest.raises(core.AtpError, match="there is no rule 'root'"):
        engine.generate("no such prompt" * 10000, [], grammar='a ::= "b"')


def test_a_captioner_follows_a_schema():
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    sampling = SamplingConfig(json_schema=json.dumps(schema))
    with Captioner(n_threads=1) as captioner:
        caption = captioner.caption(
            np.zeros((112, 112, 3), np.uint8), "How many?", sampling=sampling
        )
    assert check(caption.text, caption.finish_reason, schema)


def test_what_no_token_can_write_is_an_error(engine):
    with pytest.raises(core.StageError, match="its vocabulary does not have"):
        engine.generate("a", [], grammar="root ::= [\\uD800]")


def test_a_grammar_that_explodes_is_an_error(engine):
    grammar = 'root ::= x\nx ::= "a" x "b" | "a" x "c" | "a" x "d" | "e"'
    with pytest.raises(core.StageError, match="can be read in more than 4096 ways"):
        engine.generate("a", [], n_predict=64, grammar=grammar.replace('| "e"', '| "é"'))
    assert engine.generate("a", [], n_predict=3).finish_reason == "length"


def test_batch_follows_grammars_too(engine):
    grammar = grammar_of(json.dumps(SCHEMAS["caption"]))
    options = {"n_predict": 120, "grammar": grammar, "temp": 1.0, "seed": 3}
    alone = engine.generate(PROMPT, [], **options)
    engine.set_plan([])
    sequence = engine.encode(PROMPT, [])
    n_cells = [4 * n for n in engine.expect(sequence, 120)]
    engine.reserve(n_cells, 3)
    slots = [engine.start(sequence, **options).slot for _ in range(2)]
    slots.append(engine.start(sequence, n_predict=20).slot)
    done = {}
    while len(done) < 3:
        done |= dict(engine.step())
    for slot in slots[:2]:
        assert (done[slot].tokens, done[slot].text) == (alone.tokens, alone.text)
    with pytest.raises(core.AtpError, match="there is no rule 'root'"):
        engine.start(sequence, grammar='a ::= "b"')
