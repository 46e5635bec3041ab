"""A SentencePiece vocabulary out of tokenizer.json, for checkpoints without tokenizer.model.

transformers 5 saves tokenizer.json alone. llama.cpp's converter then gives every token the same
score, and llama.cpp, which joins the pair of the best score first, joins from left to right: other
tokens than Hugging Face's. The merges say what the scores were: SentencePiece joins whatever makes
the token of the best score, tokenizer.json lists all such pairs, best token first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# gguf.TokenType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_SCORE_OF_ADDED = -1000.0  # as llama.cpp's converter writes; such tokens are never joined
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The three parallel lists of a GGUF file: texts, scores and types (``gguf.TokenType``)."""

    tokens: list[str]
    scores: list[float]
    types: list[int]


def is_sentencepiece(content: dict[str, Any]) -> bool:
    """Whether a tokenizer.json describes a SentencePiece BPE: characters, bytes only at need."""
    model = content.get("model", {})
    return model.get("type") == "BPE" and bool(model.get("byte_fallback"))


def check_cuts(content: dict[str, Any]) -> None:
    """Refuses what llama.cpp's SentencePiece tokenizer does not do.

    Args:
        content: what is in tokenizer.json.

    Raises:
        NotImplementedError: another model than BPE, a normalizer that changes more than spaces (NFC
            aside), or a cut where tokens may span it; the message shows it.
    """
    model = content.get("model", {})
    if model.get("type", "BPE") != "BPE":
        raise _unlike(f"model {model['type']!r}, llama.cpp joins pairs as BPE does")
    for part in parts(content.get("normalizer"), "normalizers"):
        if part.get("type") not in ("Prepend", "Replace", "NFC"):
            raise _unlike(f"normalizer {part.get('type')!r}, llama.cpp replaces spaces only")
    for part in parts(content.get("pre_tokenizer"), "pretokenizers"):
        kind = part.get("type")
        if kind == "Metaspace" and part.get("split", True):
            spanning = (text for text in model.get("vocab", {}) if "▁" in text[1:])
            if (text := next(spanning, None)) is not None:
                raise _unlike(f"a cut before each space, llama.cpp may join {text!r}")
        elif kind != "Metaspace" and part.get("pattern") != {"String": " "}:
            raise _unlike(f"pre_tokenizer {kind!r}, llama.cpp does not cut")


def parts(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, one or a sequence called ``name``."""
    if step is None:
        return []
    if step.get("type") == "Sequence":
        return [inner for part in step[name] for inner in parts(part, name)]
    return [step]


def _unlike(found: str) -> NotImplementedError:
    return NotImplementedError(
        f"tokenizer.json has {found}: the tokens would differ from Hugging Face's"
    )


def vocabulary(content: dict[str, Any], n_tokens: int) -> Vocabulary:
    """The lists that make llama.cpp's tokens those of a tokenizer.json.

    Args:
        content: what is in tokenizer.json, see :func:`is_sentencepiece`.
        n_tokens: rows of the model's embedding, >= the tokens; the rest is filled up.

    Returns:
        Lists of ``n_tokens`` each.

    Raises:
        NotImplementedError: merges that no scores can express, or more tokens than rows.
    """
    vocab: dict[str, int] = content["model"]["vocab"]
    added = {token["content"]: token for token in content.get("added_tokens", [])}
    ids = {**vocab, **{text: token["id"] for text, token in added.items()}}
    check_rows(content, n_tokens)
    joined = {text for text in vocab if text not in added and not _BYTE_TOKEN.fullmatch(text)}
    ranks = _ranks(content["model"].get("merges", []), joined)
    result = Vocabulary(
        tokens=[f"[PAD{i}]" for i in range(n_tokens)],
        scores=[-10000.0] * n_tokens,
        types=[UNUSED] * n_tokens,
    )
    unknown = content["model"].get("unk_token")
    for text, i in ids.items():
        result.tokens[i] = text
        result.types[i] = NORMAL
        result.scores[i] = -float(ranks.get(text, len(ranks)))
        if text in added:
            put_added(result, added[text])
        if text == unknown:
            result.types[i] = UNKNOWN
        elif _BYTE_TOKEN.fullmatch(text):
            result.types[i] = BYTE
    return result


def check_rows(content: dict[str, Any], n_rows: int | None) -> None:
    """Refuses a tokenizer.json with tokens that the model's embedding has no rows for."""
    vocab = content.get("model", {}).get("vocab", {})
    last = max(vocab.values(), default=-1) if isinstance(vocab, dict) else -1
    last = max([last, *(token["id"] for token in content.get("added_tokens", []))])
    if n_rows is not None and last >= n_rows:
        raise NotImplementedError(
            f"tokenizer.json has token {last}, the model {n_rows} rows only; resize its embedding "
            "(resize_token_embeddings), or get the tokenizer that belongs to it"
        )


def put_added(into: Vocabulary, token: dict[str, Any]) -> None:
    """Writes one of tokenizer.json's ``added_tokens`` to its place."""
    i = token["id"]
    into.types[i] = CONTROL if token["special"] else USER_DEFINED
    into.tokens[i] = token["content"] if token["special"] else token["content"].replace("▁", " ")
    into.scores[i] = _SCORE_OF_ADDED


def _ranks(merges: list[Any], joined: set[str]) -> dict[str, int]:
    """Each joined token's place among all; checked to be all that joining depends on."""
    pairs = [tuple(m.split(" ") if isinstance(m, str) else m) for m in merges]
    ranks: dict[str, int] = {}
    for left, right in pairs:
        ranks.setdefault(left + right, len(ranks))
    order = [ranks[left + right] for left, right in pairs]
    known = set(pairs)
    missing = (pair for text in joined for pair in _splits(text, joined) if pair not in known)
    if order != sorted(order) or next(missing, None) is not None:
        raise NotImplementedError(
            "tokenizer.json has byte fallback but its merges are not SentencePiece's, and there is "
            "no tokenizer.model; get that file of the checkpoint, too"
        )
    return ranks


def _splits(text: str, joined: set[str]) -> Iterator[tuple[str, str]]:
    for at in range(1, len(text)):
        if text[:at] in joined and text[at:] in joined:
            yield text[:at], text[at:]
