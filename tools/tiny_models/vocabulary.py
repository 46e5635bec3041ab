"""A generated SentencePiece-style vocabulary of any size that llama.cpp's `llama` tokenizer loads.

Layout: `<unk>` `<s>` `</s>`, the architecture's control tokens, 256 byte tokens, the printable
ASCII characters (space as U+2581), then pieces made of syllables. Every piece of two syllables or
more is made of pieces that come earlier, so merging can reach it. Any UTF-8 text can be encoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .gguf_file import Floats

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # llama_token_type
SPACE = "\u2581"
UNK_ID, BOS_ID, EOS_ID = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokens with their scores and types, index = token id."""

    tokens: list[str]
    scores: list[float]
    types: list[int]

    def logit_bias(self) -> Floats:
        """What each token's logit should be shifted by, [n_vocab].

        Control tokens are as good as never sampled, so that a generation has the length it was
        asked for; raw bytes come seldom, so that text is mostly, but not always, ASCII.
        """
        shift = {NORMAL: 0.0, BYTE: -6.0, CONTROL: -30.0, UNKNOWN: -30.0}
        return np.array([shift[kind] for kind in self.types], dtype=np.float32)


def _pieces() -> Iterator[str]:
    syllables = [c + v for c in "bcdfghjklmnprstvw" for v in "aeiou"]
    for n_syllables in itertools.count(1):
        for prefix in ("", SPACE):
            for parts in itertools.product(syllables, repeat=n_syllables):
                yield prefix + "".join(parts)


def build_vocabulary(n_vocab: int, control: Sequence[str] = ()) -> Vocabulary:
    """A vocabulary of exactly `n_vocab` tokens.

    Args:
        n_vocab: its size; at least 354 plus the control tokens.
        control: further control tokens, ids from 3 on.

    Raises:
        ValueError: `n_vocab` is too small for the bytes and characters.
    """
    fixed = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    fixed += [(text, CONTROL) for text in control]
    fixed += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    fixed += [(SPACE, NORMAL)] + [(chr(code), NORMAL) for code in range(0x21, 0x7F)]
    if n_vocab < len(fixed):
        raise ValueError(f"vocabulary of {n_vocab} tokens is too small, needs {len(fixed)}")
    rest = [(piece, NORMAL) for piece in itertools.islice(_pieces(), n_vocab - len(fixed))]
    tokens, types = zip(*(fixed + rest), strict=True)
    scores = [-float(rank) if kind == NORMAL else 0.0 for rank, kind in enumerate(types)]
    return Vocabulary(tokens=list(tokens), scores=scores, types=list(types))
