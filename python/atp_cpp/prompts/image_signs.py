"""What a chat template writes for an image, found in rendered prompts. Knows no model's name."""

from __future__ import annotations

import re

__all__ = ["IMAGE_SIGN", "TAG", "insertion"]

# <image>, <|image_pad|>, [IMG]
TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")

# one or several of these side by side stand for an image in a template that writes them always
IMAGE_SIGN = re.compile(
    r"(?:<[^<>\s]*(?:image|img|vision|media)[^<>\s]*>|\[IMG(?:_[A-Z]+)?\])+", re.I
)


def insertion(before: str, after: str) -> tuple[int, str]:
    """The place and the text of the part that `after` has and `before` has not.

    "<|user|><|img|><|text|>" against "<|user|><|text|>" has gained "img|><|" as well as "<|img|>":
    of the ways to shift the difference, the first that is made of whole tags is taken.
    """
    start = len(_common_head(before, after))
    n_tail = len(_common_head(before[start:][::-1], after[start:][::-1]))
    end = len(after) - n_tail
    shift = 0
    while not _is_tag(after[start - shift : end - shift]):
        shift += 1
        if shift > start or after[start - shift] != after[end - shift]:
            return start, after[start:end]
    return start - shift, after[start - shift : end - shift]


def _is_tag(text: str) -> bool:
    return text.strip().startswith(("<", "[")) and text.strip().endswith((">", "]"))


def _common_head(a: str, b: str) -> str:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return a[:i]
    return min(a, b, key=len)
