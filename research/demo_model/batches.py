"""Batches for the decoder: many questions of one image in one sequence.

    row:  BOS USER : _ | kept image tokens | question 1 answer 1 EOS | question 2 ... | padding
A question sees the opening, the image and itself; each starts at the position right after the
whole image, so a packed question is computed exactly as if it were alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from easy_vqa_data import EasyImage, load, sources
from model import GRID, Packed, causal_bias
from questions import CAPTION, Asked, ask, choose
from scenes import Scene, compose, scene_rng
from tokenizer import BEFORE, BOS, EOS, PAD, after, read
from train_eye import easy_scene, labels

IMAGE_TOKENS = GRID * GRID
NONE = -100
LATE = {"place": 2.0, "relation": 2.0, "count": 1.5}
GROUP = 96  # text rows that share a block of attention; no question crosses its border


@dataclass
class Batch:
    """Tensors of one batch; B images, K kept image tokens, L text rows."""

    pixels: Tensor  # (B, 336, 336, 3) uint8
    marks: Tensor  # (B, 576, 6) dense labels
    keep: Tensor  # (B, K) image tokens that the decoder sees, ascending
    tokens: Tensor  # (B, L)
    pos: Tensor  # (B, L)
    segment: Tensor  # (B, L) which question a row belongs to; -1 - row for padding
    target: Tensor  # (B, L) the token after each row, where it belongs to an answer; else -100
    asked: list[list[Asked]]

    @property
    def weight(self) -> Tensor:
        """(B, L) 1 / sqrt(length of the answer), so that captions do not drown short answers.

        The kinds that are learned last count more.
        """
        spots = (self.target != NONE).float()
        same = self.segment[:, :, None] == self.segment[:, None, :]
        out = (same * spots[:, None, :]).sum(-1).clamp(min=1).rsqrt()
        for row, segment, asked in zip(out, self.segment, self.asked, strict=True):
            factor = torch.tensor([LATE.get(item.kind, 1.0) for item in asked] + [1.0])
            row *= factor[segment.clamp(min=-1)]
        return out


class Words:
    """Text to ids and back, cached."""

    def __init__(self, path: Path) -> None:
        self.model = read(path)
        self.opening = [BOS, *self.model.encode(BEFORE)]
        self.first = len(self.opening) + IMAGE_TOKENS  # position of a question's first row
        self.encode = lru_cache(maxsize=100_000)(lambda text: tuple(self.model.encode(text)))

    def question(self, text: str, newline: bool = True) -> tuple[int, ...]:
        return self.encode(after(text, newline))

    def answer(self, text: str) -> tuple[int, ...]:
        return (*self.encode(" " + text), EOS)


def easy_asked(image: EasyImage, scene: Scene, rng: np.random.Generator) -> list[Asked]:
    """The dataset's own questions, a caption, and more of ours."""
    out = [Asked(q, a, easy_kind(q), 0) for q, a in image.questions]
    rng.shuffle(out)  # type: ignore[arg-type]
    out.insert(0, Asked(CAPTION, f"a {image.color} {image.shape}", "caption", 0))
    return out + choose(ask(scene, rng), rng, 20)


def easy_kind(question: str) -> str:
    """color, shape or presence, by an easy-VQA question's words."""
    if "what color" in question or "what is the color" in question:
        return "color"
    return "shape" if question.startswith("what") else "presence"


def keep_list(marks: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the 576 image tokens: those about centres first, then objects, then the rest."""
    if count >= IMAGE_TOKENS:
        return np.arange(IMAGE_TOKENS)
    centre = np.zeros((GRID + 2, GRID + 2), np.float32)
    spots = marks[:, 5].reshape(GRID, GRID)
    for dy in range(3):
        for dx in range(3):
            np.maximum(
                centre[dy : dy + GRID, dx : dx + GRID],
                spots,
                out=centre[dy : dy + GRID, dx : dx + GRID],
            )
    score = rng.random(IMAGE_TOKENS) + 0.5 * marks[:, 0]
    score += 0.7 * centre[1:-1, 1:-1].reshape(-1) + 2 * marks[:, 5]
    return np.sort(np.argpartition(-score, count)[:count])


class Maker:
    """Numbered batches of `split`: 'train', 'eval' (watching) or 'test' (the final count)."""

    def __init__(
        self, data: Path, words: Words, split: str, *, keep: int, text: int, easy: float = 0.35
    ) -> None:
        self.images = load(data, "train" if split == "train" else "test")
        self.cutouts = sources(self.images)
        self.words, self.split, self.keep, self.text, self.easy = words, split, keep, text, easy

    def picture(self, index: int) -> tuple[Scene, list[Asked], np.random.Generator]:
        rng = scene_rng(self.split, index)
        if rng.random() < self.easy:
            image = self.images[rng.integers(len(self.images))]
            scene = easy_scene(image, rng if self.split == "train" else None)
            return scene, easy_asked(image, scene, rng), rng
        scene = compose(rng, self.cutouts)
        asked = ask(scene, rng)
        if self.split == "train":  # other wordings of the same
            asked = list({item.question: item for item in asked + ask(scene, rng)}.values())
        return scene, choose(asked, rng, 40), rng

    def pack(self, asked: list[Asked], rng: np.random.Generator | None) -> tuple[np.ndarray, list]:
        """Rows (4, L): token, position, segment, target; and the questions that fitted.

        With `rng` the wording varies: a capital letter, no line break.
        """
        rows = np.empty((4, self.text), np.int64)
        rows[0], rows[1], rows[3] = PAD, self.words.first, NONE
        rows[2] = -1 - np.arange(self.text)
        ends, fitted = [0] * (self.text // GROUP), []  # rows used in each group
        for item in asked:
            text, newline = item.question, True
            if rng is not None:
                text = text[0].upper() + text[1:] if rng.random() < 0.25 else text
                newline = rng.random() > 0.1
            question, answer = self.words.question(text, newline), self.words.answer(item.answer)
            ids = (*question, *answer[:-1])
            room = [g for g, used in enumerate(ends) if used + len(ids) <= GROUP]
            if not room:
                continue
            used = room[0] * GROUP + ends[room[0]]
            ends[room[0]] += len(ids)
            span = slice(used, used + len(ids))
            rows[0, span], rows[2, span] = ids, len(fitted)
            rows[1, span] = self.words.first + np.arange(len(ids))
            rows[3, used + len(question) - 1 : used + len(ids)] = answer
            fitted.append(item)
        return rows, fitted

    def collate(self, parts: list[tuple[Scene, np.ndarray, np.ndarray, list[Asked]]]) -> Batch:
        """(scene, keep, rows, asked) of each image -> a batch."""
        marks = [labels(scene.things, scene.owner) for scene, _, _, _ in parts]
        rows = torch.from_numpy(np.stack([p[2] for p in parts]))
        return Batch(
            torch.from_numpy(np.stack([p[0].pixels for p in parts])),
            torch.from_numpy(np.stack(marks)),
            torch.from_numpy(np.stack([p[1] for p in parts])),
            *(rows[:, i].contiguous() for i in range(4)),
            [p[3] for p in parts],
        )

    def batch(self, indices: list[int]) -> Batch:
        parts = []
        for index in indices:
            scene, asked, rng = self.picture(index)
            vary = rng if self.split == "train" else None
            rows, fitted = self.pack(asked, vary)
            keep = keep_list(labels(scene.things, scene.owner), self.keep, rng)
            parts.append((scene, keep, rows, fitted))
        return self.collate(parts)


def packed(opening: int, segment: Tensor, dtype: torch.dtype) -> Packed:
    """How the rows of a batch attend; segment (B, L), opening = text before plus image tokens."""
    b, length = segment.shape
    groups = segment.view(b, length // GROUP, GROUP)
    seen = (groups[..., :, None] == groups[..., None, :]).tril()
    own = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -1e4)
    return Packed(opening, GROUP, causal_bias(opening, dtype), own[:, None])
