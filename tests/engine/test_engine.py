"""The engine from prompt and pixels to text: laws that hold for a whole caption."""

import numpy as np
import pytest

from atp_cpp import _core as core
from support.invariants import layer_mean, uncut_plan
from support.policy_twin import quota
from support.rig import EXACT
from tiny_models import DecoderShape

QUESTION = " what is in the picture and how many are there?"
PLAN = [(0, "grid", 0.8), (4, "fastv", 0.5), (6, "random", 0.1, 3)]


def caption(engine, images, cuts=(), n_predict=12, **options):
    """One caption: images first, then the question."""
    prompt = engine.info.media_marker * len(images) + QUESTION
    plan = [core.Cut(*cut) if isinstance(cut, tuple) else cut for cut in cuts]
    return engine.generate(prompt, images, plan=plan, n_predict=n_predict, **options)


def facts(result):
    """All that must be the same when a caption is made again: everything but times."""
    report = result.report
    counts = (report.n_image_tokens, report.n_prompt, report.n_decoded, report.kv_bytes)
    kept = (report.n_kept, report.kept, report.grids, report.tokens_mean)
    return (result.text, result.tokens, result.finish_reason), counts, kept


@pytest.mark.parametrize("arch", ["qwen2", "qwen2vl", "qwen2moe"])
def test_greedy_text_is_that_of_llama_decode(make_rig, engines, arch):
    letters = "bcdfghjkbcdfghjk"  # no two of them make a longer token
    vocabulary = DecoderShape(arch=arch).vocabulary.tokens
    plain = make_rig(arch).plain()
    seq = core.Sequence(0)
    seq.add_text([vocabulary.index(c) for c in letters])
    logits, expected = plain.prefill(seq), []
    for i in range(20):
        expected.append(int(np.argmax(logits)))
        logits = plain.decode(expected[-1], seq.n_pos + i)
    for cuts in ([], [(2, "none"), (5, "fastv", 0.1)]):
        plan = [core.Cut(*cut) for cut in cuts]
        result = engines(arch).generate(letters, [], plan=plan, n_predict=20)
        assert result.tokens == expected
        assert result.report.n_prompt == len(letters)
        assert (result.finish_reason, result.report.n_decoded) == ("length", 20)


def test_cuts_without_pruning_change_nothing(engines, pictures, arch):
    engine = engines(arch)
    whole = caption(engine, pictures[:1])
    for cuts in ([1], [4], list(range(1, 8))):
        cut = caption(engine, pictures[:1], uncut_plan(cuts))
        assert (cut.tokens, cut.text) == (whole.tokens, whole.text)
        assert cut.report.n_kept == [whole.report.n_image_tokens] * len(cuts)
        assert cut.report.tokens_mean == whole.report.tokens_mean == whole.report.n_image_tokens


def test_the_report_says_what_was_kept(engines, pictures, arch):
    engine = engines(arch)
    result = caption(engine, pictures[:2], PLAN)
    report = result.report
    sizes = [rows * cols for rows, cols in report.grids]
    assert report.n_image_tokens == sum(sizes)
    assert report.n_prompt > report.n_image_tokens
    for kept, n_kept, keep in zip(report.kept, report.n_kept, (0.8, 0.5, 0.1), strict=True):
        each = [sum(i < sizes[0] for i in kept), sum(i >= sizes[0] for i in kept)]
        assert each == [quota(keep, n) for n in sizes], "a quota for each image"
        assert n_kept == len(kept)
    assert set(report.kept[2]) <= set(report.kept[1]) <= set(report.kept[0])
    mean = layer_mean([0, 4, 6], report.n_kept, report.n_image_tokens, 8)
    assert report.tokens_mean == pytest.approx(mean)
    assert report.n_decoded == len(result.tokens) == 12
    assert min(report.t_encode, report.t_prefill, report.t_decode) > 0.0


@pytest.mark.parametrize("policy", ["random", "grid", "fastv"])
def test_one_token_of_each_image_survives(engines, pictures, arch, policy):
    report = caption(engines(arch), pictures, [(4, policy, 1e-9)]).report
    n = report.n_image_tokens // 3
    assert [i // n for i in report.kept[0]] == [0, 1, 2]


def test_kv_bytes_fall_with_what_is_kept(make_engine, pictures):
    engine = make_engine("llama", n_ctx=1024)
    measured = [
        caption(engine, pictures, [(1, "grid", keep)]).report.kv_bytes for keep in (1.0, 0.5, 0.01)
    ]
    assert measured == sorted(measured, reverse=True)
    assert measured[2] < measured[0] / 2
    engine.close()


def test_pruning_matters_and_so_do_the_pixels(engines, pictures, arch):
    engine = engines(arch)
    texts = {
        caption(engine, [pictures[0]]).text,
        caption(engine, [pictures[1]]).text,
        caption(engine, [pictures[0]], [(1, "grid", 0.01)]).text,
        caption(engine, [pictures[0]], [(1, "random", 0.5, 1)]).text,
        caption(engine, [pictures[0], pictures[1]]).text,
        caption(engine, [pictures[1], pictures[0]]).text,
    }
    assert len(texts) == 6


def test_what_nobody_sees_can_be_dropped(make_engine, pictures):
    """Layers 4 to 6 see a window of 8 rows, and the question is longer than three windows.

    So dropping the image after layer 4 changes nothing, if decoding goes on at the length before
    pruning: a caption that went on at the shorter length would see other rows in its windows.
    """
    engine = make_engine("gemma3", sizes={"n_layer": 7, "window": 8})
    whole = caption(engine, pictures[:1], n_predict=40)
    dropped = caption(engine, pictures[:1], [(4, "grid", 1e-9)], n_predict=40)
    assert dropped.report.n_kept == [1]
    assert dropped.tokens == whole.tokens
    earlier = caption(engine, pictures[:1], [(3, "grid", 1e-9)], n_predict=40)
    assert earlier.tokens != whole.tokens, "layer 3 sees everything"
    engine.close()


class Interrupted(Exception):
    """What a callback of a test raises."""


def fails_in_policy(engine, picture):
    def broken(tokens):
        raise Interrupted

    with pytest.raises(Interrupted):
        caption(engine, [picture], [core.Cut(1, "grid", 0.5), core.Cut(5, broken)])


def fails_in_callback(engine, picture):
    def broken(text):
        raise Interrupted

    with pytest.raises(Interrupted):
        caption(engine, [picture], [(3, "grid", 0.5)], on_token=broken)


def fails_for_want_of_context(engine, picture):
    with pytest.raises(core.StageError, match="raise n_ctx"):
        caption(engine, [picture] * 150)


def fails_in_plan(engine, picture):
    with pytest.raises(core.PlanError, match="has 8 layers"):
        caption(engine, [picture], [(2, "grid", 0.5), (99, "none")])


def fails_in_image(engine, picture):
    with pytest.raises(core.ImageError, match="nothing to see"):
        caption(engine, [picture, picture[:0]])


def is_cancelled(engine, picture):
    shown = []
    result = caption(engine, [picture], on_token=lambda text: shown.append(text) or len(shown) < 3)
    assert result.finish_reason == "cancelled"
    assert result.text == "".join(shown)
    assert 3 <= len(result.tokens) < 12


def ends_well(engine, picture):
    caption(engine, [picture], [(2, "grid", 0.5), (5, "random", 0.2)])


BEFORE = [
    ends_well,
    is_cancelled,
    fails_in_policy,
    fails_in_callback,
    fails_for_want_of_context,
    fails_in_plan,
    fails_in_image,
]


@pytest.mark.parametrize("before", BEFORE)
def test_nothing_leaks_into_the_next_caption(engines, make_engine, pictures, arch, before):
    plan = PLAN
    fresh = make_engine(arch)
    expected = facts(caption(fresh, [pictures[1]], plan))
    fresh.close()
    engine = engines(arch)
    before(engine, pictures[0])
    assert facts(caption(engine, [pictures[1]], plan)) == expected


def test_ubatches_change_rounding_only(make_engine, pictures, arch):
    texts = set()
    for n_ubatch in (1, 7, 64, 512):
        engine = make_engine(arch, n_ubatch=n_ubatch, **EXACT)
        whole = caption(engine, pictures[:2], n_predict=6)
        pruned = caption(engine, pictures[:2], [(1, "grid", 0.4), (5, "grid", 0.1)], n_predict=6)
        texts.add((tuple(whole.tokens), tuple(pruned.tokens)))
        engine.close()
    assert len(texts) == 1


def test_a_prompt_may_begin_or_end_with_an_image_or_be_one(engines, pictures, arch):
    engine = engines(arch)
    marker = engine.info.media_marker
    plan = [core.Cut(2, "grid", 0.3), core.Cut(4, "fastv", 0.1)]
    for prompt in (marker, marker + "a", "a" + marker, marker + marker, f"a{marker}b{marker}"):
        images = pictures[: prompt.count(marker)]
        result = engine.generate(prompt, images, plan=plan, n_predict=3)
        assert len(result.tokens) == 3 or result.finish_reason == "stop"
        if arch == "llama" and prompt.endswith(marker):  # others write text behind an image
            assert result.report.kept[1][-1] == result.report.n_image_tokens - 1


def test_context_must_hold_prompt_and_answer(engines, pictures):
    engine = engines("llama")
    n_prompt = caption(engine, pictures[:1]).report.n_prompt
    result = caption(engine, pictures[:1], [(2, "grid", 0.1)], n_predict=512 - n_prompt)
    assert result.report.n_decoded == 512 - n_prompt
    cut = caption(engine, pictures[:1], [(2, "grid", 0.1)], n_predict=513 - n_prompt)
    assert (cut.report.n_decoded, cut.finish_reason) == (512 - n_prompt, "length")
    assert cut.tokens == result.tokens, "what does not fit is cut, the rest stays"
    with pytest.raises(core.StageError, match=r"positions \(640 of them image"):
        caption(engine, pictures[:1] * 10)
    with pytest.raises(core.StageError, match="n_predict must be at least 0, got -1"):
        caption(engine, pictures[:1], n_predict=-1)
    nothing = caption(engine, pictures[:1], n_predict=0)
    assert (nothing.text, nothing.tokens, nothing.finish_reason) == ("", [], "length")


def test_an_empty_prompt(engines):
    with pytest.raises(core.StageError, match="the prompt is empty"):
        engines("qwen2").generate("", [])
    assert engines("llama").generate("", [], n_predict=2).report.n_prompt == 1, "<s> alone"


def test_facts_of_the_model(engines):
    info = engines("llama").info
    assert (info.arch, info.n_layer, info.n_embd, info.n_vocab) == ("llama", 8, 128, 512)
    assert (info.has_vision, info.can_prune, info.why_not, info.mrope) == (True, True, "", False)
    assert info.legal_cuts == [1, 2, 3, 4, 5, 6, 7]
    assert (info.bos, info.eos, info.media_marker) == ("<s>", "</s>", "<__media__>")
    assert (info.add_bos, info.nfc, info.lstrip, info.rstrip) == (True, False, [], [])
    assert (info.n_ctx_train, info.devices) == (4096, ["CPU"])
    assert info.size_bytes == 4 * info.n_params
    assert "USER: " in info.chat_template
