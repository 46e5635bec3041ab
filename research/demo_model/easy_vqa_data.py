"""easy-VQA (MIT licence): its images, its questions and the shapes cut out of them.

In:  the `easy-vqa` wheel's unpacked `data` folder (4,000 train and 1,000 test images, 64 x 64).
Out: uint8 images (64, 64, 3), questions as (question, answer), and cut-outs (RGBA) for scenes.
Knows nothing of models or tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("red", "blue", "green", "yellow", "teal", "black", "gray", "brown")
RGB = {
    "red": (255, 0, 0),
    "blue": (0, 0, 255),
    "green": (0, 255, 0),
    "yellow": (255, 255, 0),
    "teal": (0, 128, 128),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "brown": (165, 42, 42),
}
FILTERS = (
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
    Image.Resampling.BOX,
    Image.Resampling.NEAREST,
)


@dataclass(frozen=True)
class EasyImage:
    """One easy-VQA image, what it shows, and its questions."""

    index: int
    pixels: np.ndarray  # (64, 64, 3) uint8
    mask: np.ndarray  # (64, 64) bool, true on the shape
    shape: str
    color: str
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 in 64 x 64 pixels, x1 and y1 exclusive
    questions: tuple[tuple[str, str], ...]

    def cutout(self) -> Image.Image:
        """The shape alone as an RGBA image, transparent around it."""
        x0, y0, x1, y1 = self.box
        rgba = np.zeros((y1 - y0, x1 - x0, 4), np.uint8)
        rgba[..., :3] = RGB[self.color]
        rgba[..., 3] = self.mask[y0:y1, x0:x1] * 255
        return Image.fromarray(rgba)


def segment(pixels: np.ndarray) -> np.ndarray:
    """The shape's mask (64, 64): pixels that differ from the near-uniform background."""
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
    background = np.median(corners, axis=0)
    return np.abs(pixels.astype(int) - background).sum(axis=2) > 40


def nearest_color(rgb: np.ndarray) -> str:
    """The palette's name for a colour (3,)."""
    return min(COLORS, key=lambda name: float(np.abs(rgb - np.array(RGB[name])).sum()))


def shape_from_answers(questions: list[tuple[str, str]]) -> str | None:
    """The shape as the questions tell it, or None where they do not."""
    for question, answer in questions:
        if answer in SHAPES:
            return answer
        for shape in SHAPES:
            if question in (f"what color is the {shape}?", f"what is the color of the {shape}?"):
                return shape
            if shape in question and answer in ("yes", "no"):
                negated = " not " in question or question.startswith("is no ")
                if (answer == "yes") != negated:
                    return shape
    return None


def shape_from_mask(mask: np.ndarray) -> str:
    """The shape by how much of its bounding box it fills (triangle 1/2, circle 0.79, all)."""
    fill = float(mask.mean())
    return "triangle" if fill < 0.68 else "circle" if fill < 0.92 else "rectangle"


@lru_cache(maxsize=4)
def load(data: Path, split: str) -> list[EasyImage]:
    """All images of `split` ('train' or 'test') with their questions."""
    per_image: dict[int, list[tuple[str, str]]] = {}
    for question, answer, index in json.loads((data / split / "questions.json").read_text()):
        per_image.setdefault(index, []).append((question, answer))
    out = []
    for index in sorted(per_image):
        path = data / split / "images" / f"{index}.png"
        pixels = np.asarray(Image.open(path).convert("RGB"))
        mask = segment(pixels)
        ys, xs = np.nonzero(mask)
        box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
        inner = mask[box[1] : box[3], box[0] : box[2]]
        shape = shape_from_answers(per_image[index]) or shape_from_mask(inner)
        color = nearest_color(np.median(pixels[mask], axis=0))
        out.append(EasyImage(index, pixels, mask, shape, color, box, tuple(per_image[index])))
    return out


def sources(images: list[EasyImage], *, min_side: int = 9) -> dict[tuple[str, str], list]:
    """Cut-outs (RGBA images) big enough to enlarge, by (shape, color)."""
    out: dict[tuple[str, str], list] = {(s, c): [] for s in SHAPES for c in COLORS}
    for image in images:
        x0, y0, x1, y1 = image.box
        if min(x1 - x0, y1 - y0) >= min_side and x0 > 0 and y0 > 0 and x1 < 64 and y1 < 64:
            out[image.shape, image.color].append(image.cutout())
    return out


def enlarge(
    image: EasyImage, rng: np.random.Generator | None = None, *, size: int = 336
) -> tuple[np.ndarray, np.ndarray]:
    """The image at `size` and its mask: (size, size, 3) uint8 and (size, size) bool.

    Without `rng` the resize is plain bicubic, as llama.cpp's; with it, filter, mirror, shift,
    zoom and brightness vary.
    """
    picture, mask = (
        Image.fromarray(image.pixels),
        Image.fromarray(image.mask.astype(np.uint8) * 255),
    )
    if rng is None:
        big = picture.resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(big), np.asarray(mask.resize((size, size))) > 127
    flt = FILTERS[int(rng.choice(5, p=(0.4, 0.2, 0.15, 0.1, 0.15)))]
    window: tuple[float, ...] = (0, 0, 64, 64)
    if rng.random() < 0.5:  # crop a window that keeps the whole shape
        x0, y0, x1, y1 = image.box
        side = rng.uniform(max(x1 - x0, y1 - y0, 56), 64)
        left = rng.uniform(max(0, x1 - side), min(x0, 64 - side))
        top = rng.uniform(max(0, y1 - side), min(y0, 64 - side))
        window = (left, top, left + side, top + side)
    big = np.asarray(picture.resize((size, size), flt, box=window))
    big_mask = np.asarray(mask.resize((size, size), flt, box=window)) > 127
    if rng.random() < 0.3:
        big, big_mask = big[:, ::-1], big_mask[:, ::-1]
    if rng.random() < 0.3:
        gain = rng.uniform(0.93, 1.0)
        big = (big * np.float32(gain)).astype(np.uint8)
    return big, big_mask
