"""Which of llama.cpp's ways to cut text a byte-level BPE tokenizer uses, told from tokenizer.json.

llama.cpp's converter knows a tokenizer by a hash of the tokens of one long text; a fine-tune with
other merges or a tiny tokenizer has another hash, though it cuts text as its parent does. Here the
description itself is compared. :data:`FORMS` holds only forms of which ``llama-vocab.cpp`` makes
the same tokens as Hugging Face's tokenizers on hundreds of hard texts (the tests compare them);
what llama.cpp only comes near to (``gpt-4o``, ``tekken``, ``deepseek-coder``) is left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atp_cpp.convert.spm_json import parts

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}{_SIGNS}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{_SIGNS}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{_SPACES}"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*" + _SPACES
)
_SEED_CODER = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+{_SPACES}"
_MINICPM5 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}+{_SIGNS}"
_EXAONE_MOE = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?{_SPACES}"
)


@dataclass(frozen=True, slots=True)
class Form:
    """One way to cut text.

    Attributes:
        name: what llama.cpp calls it (``tokenizer.ggml.pre``).
        cuts: patterns, each applied to the pieces that the one before has left.
        ignore_merges: whether a piece that is a token stays one, whatever the merges say.
    """

    name: str
    cuts: tuple[str, ...]
    ignore_merges: bool = False


FORMS = (
    Form("gpt-2", (_GPT2,)),
    Form("smollm", (r"\p{N}", _GPT2)),
    Form("llama-bpe", (_LLAMA3,), ignore_merges=True),
    Form("smaug-bpe", (_LLAMA3,)),
    Form("qwen2", (_QWEN2,)),
    Form("qwen35", (_QWEN35,)),
    Form("deepseek-v3", (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK3)),
    Form("seed-coder", (_SEED_CODER,)),
    Form("minicpm5", (r"\p{N}{1,3}", _MINICPM5), ignore_merges=True),
    Form("exaone-moe", (_EXAONE_MOE,)),
)

# Spellings that match the same text: alternatives of which none begins another; possessive
# quantifiers before characters that the repeated class lacks; \s* takes all of [\r\n]+ but one.
_SPELLINGS = (
    ("\r", r"\r"),
    ("\n", r"\n"),
    ("'(?i:[sdmt]|ll|ve|re)", _CONTRACTIONS),
    (r"?+\p{L}", r"?\p{L}"),
    ("]++", "]+"),
    (r"\p{N}{1}", r"\p{N}"),
    (r"|\s*[\r\n]|", r"|\s*[\r\n]+|"),
    (r'[!"', r"[!\""),
)


def detect_pre(folder: Path, known_hash_result: str | None) -> str:
    """llama.cpp's name of the way a checkpoint's tokenizer cuts text.

    Args:
        folder: the checkpoint; its tokenizer.json is read.
        known_hash_result: what llama.cpp's converter told from the hash; it stands.

    Returns:
        A value for ``tokenizer.ggml.pre``.

    Raises:
        NotImplementedError: a form that llama.cpp does not have; the message shows it.
    """
    if known_hash_result is not None:
        return known_hash_result
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise NotImplementedError(
            f"{folder} has no tokenizer.json and its tokenizer is none that llama.cpp knows; "
            "save it with transformers' save_pretrained"
        )
    content = json.loads(path.read_text(encoding="utf-8"))
    model = content.get("model", {})
    cuts = _cuts(content)
    _check_model(model)
    ignore_merges = bool(model.get("ignore_merges"))
    for form in FORMS:
        if form.cuts == cuts and form.ignore_merges == ignore_merges:
            return form.name
    raise _unknown(f"cuts {list(cuts)} with ignore_merges {ignore_merges}")


def needs_nfc(content: dict[str, Any]) -> bool:
    """Whether a tokenizer composes characters (Unicode's NFC) first; llama.cpp never does."""
    return "NFC" in _normalizers(content.get("normalizer"))


def _cuts(content: dict[str, Any]) -> tuple[str, ...]:
    """The patterns of a pre-tokenizer, spelled alike."""
    normalizers = _normalizers(content.get("normalizer"))
    if normalizers not in ([], ["NFC"]):
        raise _unknown(f"normalizer {_short(content['normalizer'])}")
    steps = parts(content.get("pre_tokenizer"), "pretokenizers")
    last = steps[-1] if steps else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True):
        found = _short(content.get("pre_tokenizer"))
        raise _unknown(f"pre_tokenizer {found}, which does not end in bytes without a prefix")
    cuts = [_cut(step, alone=len(steps) == 2) for step in steps[:-1]]
    if last.get("use_regex", True):
        cuts.append(_GPT2)
    return tuple(cuts)


def _cut(step: dict[str, Any], *, alone: bool) -> str:
    kind = step.get("type")
    if kind == "Digits":
        return r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
    how = (step.get("behavior"), bool(step.get("invert")))
    # a pattern that matches everything: what is between its matches is empty
    if kind == "Split" and (how == ("Isolated", False) or (alone and how == ("Removed", True))):
        pattern = step.get("pattern", {}).get("Regex")
        if isinstance(pattern, str):
            for spelling, ours in _SPELLINGS:
                pattern = pattern.replace(spelling, ours)
            return pattern
    raise _unknown(f"pre_tokenizer step {_short(step)}")


def _check_model(model: dict[str, Any]) -> None:
    """Refuses what changes tokens and has no place in a GGUF file."""
    if model.get("type", "BPE") != "BPE":
        raise _unknown(f"model {model.get('type')!r} instead of BPE")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout"):
        if model.get(key):
            raise _unknown(f"model.{key} {model[key]!r}")


def _normalizers(normalizer: dict[str, Any] | None) -> list[str]:
    return [str(part.get("type")) for part in parts(normalizer, "normalizers")]


def _unknown(found: str) -> NotImplementedError:
    names = ", ".join(form.name for form in FORMS)
    return NotImplementedError(
        f"tokenizer.json has {found}; llama.cpp cuts text exactly as Hugging Face does for "
        f"{names} only: convert with a tokenizer of one of these forms"
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else text[:297] + "..."
