"""Scenes: one to six easy-VQA shapes on a varied background, with dense labels.

In:  cut-outs by (shape, color) and a random generator.  Out: `Scene`, an image (size, size, 3)
uint8 with its objects and the index of the object under each patch centre.  What is asked about
a scene is in `questions.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from easy_vqa_data import COLORS, FILTERS, RGB, SHAPES

SEED = 20240
PATCH = 14
SPLITS = {"train": 1, "test": 2, "eval": 3}


@dataclass(frozen=True)
class Thing:
    """One object of a scene; the box in pixels, x1 and y1 exclusive."""

    shape: str
    color: str
    box: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def center(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Scene:
    """An image, its objects and which object covers each patch centre (-1: background)."""

    pixels: np.ndarray  # (size, size, 3) uint8
    things: tuple[Thing, ...]
    owner: np.ndarray  # (size / 14, size / 14) int8


def _light(rng: np.random.Generator) -> np.ndarray:
    """A background colour (3,): mostly light, sometimes of middle brightness."""
    low = 190 if rng.random() < 0.7 else 90
    return rng.integers(low, 256, 3).astype(np.float32)


def _ramp(rng: np.random.Generator, size: int) -> np.ndarray:
    """A linear ramp (size, size) from 0 to 1 in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    ramp = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    return (ramp - ramp.min()) / (ramp.max() - ramp.min())


def background(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A background (size, size, 3) uint8 and the colours that it is made of."""
    kind = rng.choice(6, p=(0.25, 0.2, 0.15, 0.15, 0.1, 0.15))
    first = _light(rng)
    second = np.clip(first + rng.uniform(-50, 50, 3), 60, 255).astype(np.float32)
    if kind == 0:
        return np.full((size, size, 3), first, np.uint8), [first]
    if kind == 1:
        mix = _ramp(rng, size)
    elif kind == 2:  # stripes
        mix = (_ramp(rng, size) * rng.integers(4, 24) % 2 > 1).astype(np.float32)
    elif kind == 3:  # soft blobs
        cells = int(rng.integers(3, 9))
        low = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
        mix = np.asarray(low.resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255
    elif kind == 4:  # checks
        side, rows = int(rng.integers(14, 60)), np.arange(size)
        mix = ((rows[:, None] // side + rows[None, :] // side) % 2).astype(np.float32)
    else:  # fine noise
        mix = np.asarray(rng.integers(0, 256, (size, size), dtype=np.uint8), np.float32) / 255
    out = first + mix[..., None] * (second - first)
    return out.astype(np.uint8), [first, second]


def _place(
    rng: np.random.Generator, wh: tuple[int, int], boxes: list, size: int, allowed: float
) -> tuple[int, int, int, int] | None:
    """A box of `wh` whose overlap with every other box is at most `allowed` of the smaller."""
    w, h = wh
    for _ in range(30):
        x, y = int(rng.integers(0, size - w + 1)), int(rng.integers(0, size - h + 1))
        for x0, y0, x1, y1 in boxes:
            dx, dy = min(x + w, x1) - max(x, x0), min(y + h, y1) - max(y, y0)
            smaller = min(w * h, (x1 - x0) * (y1 - y0))
            if dx > -4 and dy > -4 and max(dx, 0) * max(dy, 0) >= allowed * smaller:
                break
        else:
            return x, y, x + w, y + h
    return None


def _pick(rng: np.random.Generator, shades: list[np.ndarray], things: list[Thing]) -> tuple:
    """A (shape, color) that stands out from the background's shades."""
    while True:
        shape, color = SHAPES[rng.integers(3)], COLORS[rng.integers(8)]
        if things and rng.random() < 0.15:  # repeat what is there: counting needs twins
            shape = things[rng.integers(len(things))].shape
        if all(np.linalg.norm(shade - np.array(RGB[color])) > 90 for shade in shades):
            return shape, color


def compose(
    rng: np.random.Generator,
    cutouts: dict[tuple[str, str], list],
    *,
    size: int = 336,
    n_things: int | None = None,
    sides: tuple[int, int] = (36, 140),
) -> Scene:
    """A scene of `n_things` (random, one to six, if None) objects; fewer if there is no room."""
    canvas, shades = background(rng, size)
    picture = Image.fromarray(canvas)
    ids = Image.new("L", (size, size), 0)
    wanted = n_things if n_things is not None else int(rng.integers(1, 7))
    things: list[Thing] = []
    for _ in range(wanted):
        shape, color = _pick(rng, shades, things)
        stock = cutouts[shape, color]
        cut = stock[rng.integers(len(stock))]
        side = float(np.exp(rng.uniform(np.log(sides[0]), np.log(sides[1]))))
        scale = max(side / max(cut.size), 20 / min(cut.size))
        wh = (round(cut.width * scale), round(cut.height * scale))
        allowed = 0.1 if rng.random() < 0.15 else 0.0
        box = _place(rng, wh, [t.box for t in things], size, allowed)
        if box is None:
            continue
        big = cut.getchannel("A").resize(wh, FILTERS[rng.integers(3)])
        shade = tuple(
            int(v) for v in np.clip(np.array(RGB[color]) + rng.integers(-12, 13, 3), 0, 255)
        )
        picture.paste(shade, box, big)
        things.append(Thing(shape, color, box))
        ids.paste(len(things), box, big.point(lambda v: 255 * (v > 127)))
    if rng.random() < 0.1:  # a thin line across, which is no shape
        draw, ends = ImageDraw.Draw(picture), rng.integers(0, size, 4).tolist()
        draw.line(ends, fill=tuple(int(v) for v in shades[0] * 0.8), width=2)
    half = PATCH // 2
    owner = np.asarray(ids)[half::PATCH, half::PATCH].astype(np.int8) - 1
    return Scene(np.asarray(picture), tuple(things), owner)


def scene_rng(split: str, index: int) -> np.random.Generator:
    """The generator of one numbered scene: the same scene whenever it is asked for."""
    return np.random.default_rng((SEED, SPLITS[split], index))
