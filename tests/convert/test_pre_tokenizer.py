"""Tokenizers are told by how they cut text; llama.cpp then makes the tokens Hugging Face makes."""

import json

import pytest

from atp_cpp.convert import spm_json
from atp_cpp.convert.pre_tokenizer import FORMS, detect_pre, needs_nfc
from atp_cpp.convert.vocabulary import prefix_scheme, with_surroundings
from support.hard_texts import HARD_TEXTS
from support.tiny_tokenizer_kinds import PRE_TOKENIZERS, SPLIT_LLAMA3, SPLIT_QWEN2, split

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def cut(pattern, behavior="Isolated", invert=False):
    pattern = {"Regex": pattern}
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def write(folder, pre_tokenizer, *, normalizer=None, **model):
    content = {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    content["model"] = {"type": "BPE", "vocab": {}, "merges": [], **model}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def of_form(form):
    return sequence(*[cut(pattern) for pattern in form.cuts], BYTES)


# as checkpoints spell them: Qwen2, Llama 3, SmolLM2, GPT-2, DeepSeek-V3, Ling, tiktoken's cl100k
SPELLINGS = {
    "qwen2": (PRE_TOKENIZERS["qwen2"], False),
    "llama-bpe": (PRE_TOKENIZERS["llama3"], True),
    "smollm": (PRE_TOKENIZERS["smollm"], False),
    "gpt-2": (PRE_TOKENIZERS["gpt2"], False),
    "deepseek-v3": (
        sequence(
            cut(r"\p{N}{1,3}"),
            cut("[一-龥\u3040-ゟ゠-ヿ]+"),
            cut(
                r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
                "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
                "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
            ),
            BYTES,
        ),
        False,
    ),
    "qwen2 as Ling": (
        split(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
            r"|\s*[\r\n]|\s+(?!\S)|\s+"
        ),
        False,
    ),
    "smaug-bpe as cl100k": (sequence(cut(SPLIT_LLAMA3, "Removed", True), BYTES), False),
    "qwen2 nested": (sequence(sequence(cut(SPLIT_QWEN2)), BYTES), False),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_forms_are_told_as_checkpoints_spell_them(case, tmp_path):
    pre_tokenizer, ignore_merges = SPELLINGS[case]
    write(tmp_path, pre_tokenizer, ignore_merges=ignore_merges)
    assert detect_pre(tmp_path, None) == case.split()[0]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_form_is_told_apart(form, tmp_path):
    write(tmp_path, of_form(form), ignore_merges=form.ignore_merges)
    assert detect_pre(tmp_path, None) == form.name


def test_what_the_hash_tells_stands(tmp_path):
    assert detect_pre(tmp_path, "chameleon") == "chameleon"


def test_a_composing_normalizer_is_taken_and_named(tmp_path):
    nfc = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    write(tmp_path, PRE_TOKENIZERS["qwen2"], normalizer=nfc)
    assert detect_pre(tmp_path, None) == "qwen2"
    assert needs_nfc({"normalizer": nfc}) and not needs_nfc({"normalizer": None})


QWEN2 = PRE_TOKENIZERS["qwen2"]
MINICPM5 = next(form for form in FORMS if form.name == "minicpm5")
PREFIXED = {**BYTES, "add_prefix_space": True}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}
REFUSED = {
    "another pattern": ({"pre_tokenizer": split(r"\p{L}+|\p{N}{1,2}|\s+")}, r"\\p\{N\}\{1,2\}"),
    "patterns in another order": (
        {"pre_tokenizer": sequence(PRE_TOKENIZERS["gpt2"], cut(r"\p{N}"), BYTES)},
        "ByteLevel",
    ),
    "one pattern more": ({"pre_tokenizer": sequence(cut(r"\p{N}"), *QWEN2["pretokenizers"])}, "N"),
    "merged": ({"pre_tokenizer": sequence(cut(SPLIT_QWEN2, "MergedWithNext"), BYTES)}, "WithNext"),
    "removed": ({"pre_tokenizer": sequence(cut(SPLIT_QWEN2, "Removed"), BYTES)}, "Removed"),
    "prefix space": ({"pre_tokenizer": sequence(cut(SPLIT_QWEN2), PREFIXED)}, "add_prefix_space"),
    "metaspace": ({"pre_tokenizer": METASPACE}, "Metaspace"),
    "no pre-tokenizer": ({"pre_tokenizer": None}, "pre_tokenizer null"),
    "lower case": ({"pre_tokenizer": QWEN2, "normalizer": {"type": "Lowercase"}}, "Lowercase"),
    "whole words kept": ({"pre_tokenizer": QWEN2, "ignore_merges": True}, "ignore_merges True"),
    "merges kept": (
        {"pre_tokenizer": of_form(MINICPM5)},
        "ignore_merges False",
    ),
    "unigram": ({"pre_tokenizer": QWEN2, "type": "Unigram"}, "'Unigram' instead of BPE"),
    "word ends": ({"pre_tokenizer": QWEN2, "end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_lacks_is_refused_and_shown(case, tmp_path):
    parts, message = REFUSED[case]
    write(tmp_path, **parts)
    with pytest.raises(NotImplementedError, match=message) as caught:
        detect_pre(tmp_path, None)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 800


def test_a_folder_without_tokenizer_json_is_refused(tmp_path):
    with pytest.raises(NotImplementedError, match=r"no tokenizer\.json"):
        detect_pre(tmp_path, None)


@pytest.mark.torch
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_llama_cpp_cuts_as_hugging_face_does(form, tmp_path):
    from tokenizers import Tokenizer

    from atp_cpp import _core
    from support.vocab_gguf import trained_across_cuts, write_bpe_gguf

    content = trained_across_cuts(
        HARD_TEXTS, of_form(form), ignore_merges=form.ignore_merges, vocab_size=2000
    )
    write_bpe_gguf(tmp_path / "model.gguf", content, form.name)
    reference = Tokenizer.from_str(json.dumps(content))
    engine = _core.Engine(str(tmp_path / "model.gguf"), n_gpu_layers=0, self_test=False, n_ctx=512)
    wrong = [
        text for text in HARD_TEXTS if reference.encode(text).ids != engine.encode(text, []).tokens
    ]
    assert not wrong
    engine.close()


def sentencepiece(merges, **added):
    pieces = ["<unk>", "<s>", "<0x0A>", "a", "b", "ab", "abb", "bb"]
    signs = [{"id": 1, "content": "<s>", "special": True}, *added.values()]
    model = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "merges": merges}
    model["vocab"] = {piece: i for i, piece in enumerate(pieces)}
    return {"model": model, "added_tokens": signs}


MERGES = [["a", "b"], ["ab", "b"], ["a", "bb"], ["b", "b"]]


def test_scores_are_the_merges_in_their_order():
    spaces = {"id": 9, "content": "▁▁", "special": False}
    image = {"id": 8, "content": "<image>", "special": True}
    content = sentencepiece(MERGES, image=image, spaces=spaces)
    assert spm_json.is_sentencepiece(content)
    words = spm_json.vocabulary(content, 11)
    assert words.tokens[:3] == ["<unk>", "<s>", "<0x0A>"]
    assert words.tokens[8:] == ["<image>", "  ", "[PAD10]"]
    assert words.scores[5:8] == [0.0, -1.0, -2.0]
    assert max(words.scores[3:5]) < -2.0, "single characters are never joined"
    assert words.types == [2, 3, 6, 1, 1, 1, 1, 1, 3, 4, 5]


@pytest.mark.parametrize(
    "merges",
    [
        pytest.param(MERGES[:2] + MERGES[3:], id="one way to join missing"),
        pytest.param([MERGES[1], MERGES[0], *MERGES[2:]], id="in between another token's"),
    ],
)
def test_merges_that_no_scores_express_are_refused(merges):
    with pytest.raises(NotImplementedError, match=r"merges are not SentencePiece's.*get that file"):
        spm_json.vocabulary(sentencepiece(merges), 8)


def test_more_tokens_than_rows_are_refused():
    with pytest.raises(NotImplementedError, match="token 7, the model 7 rows only; resize"):
        spm_json.vocabulary(sentencepiece(MERGES), 7)
    added = [{"id": 9, "content": "<image>", "special": True}]
    with pytest.raises(NotImplementedError, match="token 9, the model 9 rows only; resize"):
        spm_json.check_rows({"added_tokens": added, "model": {"vocab": {"a": 3}}}, 9)
    for content, n_rows in (
        ({"added_tokens": added}, 10),
        ({"added_tokens": added}, None),
        ({}, 1),
    ):
        spm_json.check_rows(content, n_rows)


@pytest.mark.parametrize(
    ("content", "scheme"),
    [
        ({"normalizer": {"type": "Prepend", "prepend": "▁"}}, "every"),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}}, "first"),
        ({"pre_tokenizer": sequence({"type": "Metaspace"})}, "always"),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}}, "never"),
        ({"normalizer": {"type": "Replace"}, "pre_tokenizer": None}, "never"),
    ],
)
def test_where_a_space_is_put_in_front(content, scheme):
    assert prefix_scheme(content) == scheme


def test_what_a_processor_writes_around_an_image_is_written_by_the_template():
    template = "{{ '<i>' if i else \"<i>\" }}"
    changed = with_surroundings(template, "<i>", "\n\n")
    assert changed == r"""{{ '\n\n<i>\n\n' if i else "\n\n<i>\n\n" }}"""
    assert with_surroundings("{{ text }}", "<i>", "\n\n") == "{{ text }}"
    with pytest.raises(NotImplementedError, match="'<i>' as part of something else"):
        with_surroundings("{{ 'image: <i>' }}", "<i>", "\n\n")


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}
PLAIN = {"type": "BPE", "vocab": {"▁a": 0, "▁": 1}}
SPANNING = {"type": "BPE", "vocab": {"▁a": 0, "▁▁": 1}}


@pytest.mark.parametrize(
    "content",
    [
        {"model": SPANNING, "normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}},
        {"model": SPANNING, "pre_tokenizer": {**METASPACE, "split": False}},
        {"model": PLAIN, "pre_tokenizer": METASPACE},
        {"model": PLAIN, "normalizer": {"type": "NFC"}},
        {"model": SPANNING, "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}}},
    ],
)
def test_sentencepiece_as_llama_cpp_does_it_is_taken(content):
    spm_json.check_cuts(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "model 'Unigram'"),
        ({"model": PLAIN, "normalizer": {"type": "Precompiled"}}, "normalizer 'Precompiled'"),
        ({"model": SPANNING, "pre_tokenizer": METASPACE}, "may join '▁▁': the tokens would"),
        ({"model": PLAIN, "pre_tokenizer": {"type": "Digits"}}, "pre_tokenizer 'Digits'"),
    ],
)
def test_sentencepiece_of_another_kind_is_refused(content, message):
    with pytest.raises(NotImplementedError, match=message):
        spm_json.check_cuts(content)
