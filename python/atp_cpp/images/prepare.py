"""Pixels -> the squares a vision tower takes, bit for bit as Hugging Face's image processors do.

Pillow resizes; nothing here does. Knows no model: an :class:`~atp_cpp.images.spec.ImageSpec` says
what to do. For tiles ("anyres") the image is drawn into the middle of a black canvas of one of the
pinpoints' sizes, the canvas is cut into tiles line by line, and the whole image, squeezed into one
square, goes before them.

Also says where in the picture each square was taken from, for drawings of what a model kept.

Source of the rules: transformers 5.23, the PIL image processors (bit-equal before rescaling).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from atp_cpp.errors import ImageError
from atp_cpp.images.load import Pixels
from atp_cpp.images.spec import Color, ImageSpec, Size

MAX_SQUARE = 1 << 29  # pixels of a square that an image is laid on: 1.5 GiB
_FILTERS = {f.name.lower(): f for f in Image.Resampling}


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of the picture in its own pixels; may reach beyond its edges."""

    top: float
    left: float
    bottom: float
    right: float


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image, ready for the vision tower.

    Attributes:
        tiles: uint8 [n, side, side, 3]; the first shows the whole image (or its middle, if the
            rule crops), the others are the tiles, line by line.
        grid: rows and columns of the tiles behind the first; (0, 0) if there are none.
        size: height and width of the image as it came.
        overview: what part of the image the first square shows.
        canvas: what part of the image all tiles together show; None without tiles.
    """

    tiles: Pixels
    grid: tuple[int, int]
    size: Size
    overview: Box
    canvas: Box | None


def prepare(pixels: Pixels, spec: ImageSpec, *, n_images: int = 1) -> Prepared:
    """Follows the rule for one image.

    Args:
        pixels: uint8 [h, w, 3], RGB.
        spec: the rule.
        n_images: how many images the prompt has; some rules make tiles of a single one only.

    Raises:
        ImageError: the rule lays it on a square that takes more memory than MAX_SQUARE.
    """
    size = (pixels.shape[0], pixels.shape[1])
    if spec.pinpoints and not (spec.pad_color and n_images > 1):
        return _tiled(pixels, spec, size)
    square, (y, x) = pixels, (0, 0)
    if spec.pad_color:
        square, (y, x) = _on_a_square(pixels, spec.pad_color)
    out, seen = _resized_and_cropped(square, spec)
    overview = Box(seen.top - y, seen.left - x, seen.bottom - y, seen.right - x)
    return Prepared(out[None], (0, 0), size, overview, None)


def best_pinpoint(size: Size, pinpoints: tuple[Size, ...]) -> Size:
    """The canvas that shows most of the image's pixels, and of those the one with least waste.

    Args:
        size: height and width of the image.
        pinpoints: [h, w] of each canvas; of equally good ones the first is taken.
    """
    height, width = size

    def merit(canvas: Size) -> tuple[int, int]:
        scale = min(canvas[1] / width, canvas[0] / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, shown - canvas[0] * canvas[1]

    return max(pinpoints, key=merit)


def _tiled(pixels: Pixels, spec: ImageSpec, size: Size) -> Prepared:
    canvas_size = best_pinpoint(size, spec.pinpoints)
    canvas, canvas_box = _on_a_canvas(pixels, canvas_size, spec)
    rows, cols = canvas_size[0] // spec.tile, canvas_size[1] // spec.tile
    parts = [_resize(pixels, spec.size, spec)]
    parts += [part for row in np.split(canvas, rows) for part in np.split(row, cols, axis=1)]
    done = [_resized_and_cropped(part, spec) for part in parts]
    seen = done[0][1]
    y, x = size[0] / spec.size[0], size[1] / spec.size[1]
    overview = Box(y * seen.top, x * seen.left, y * seen.bottom, x * seen.right)
    return Prepared(np.stack([tile for tile, _ in done]), (rows, cols), size, overview, canvas_box)


def _on_a_canvas(pixels: Pixels, canvas_size: Size, spec: ImageSpec) -> tuple[Pixels, Box]:
    """The image as large as it goes into the middle of a black canvas [h, w], and what it shows."""
    (height, width), (max_height, max_width) = pixels.shape[:2], canvas_size
    y, x = max_height / height, max_width / width
    if x < y:
        new = (min(math.ceil(height * x), max_height), max_width)
    else:
        new = (max_height, min(math.ceil(width * y), max_width))
    top, left = (max_height - new[0]) // 2, (max_width - new[1]) // 2
    canvas = np.zeros((*canvas_size, 3), np.uint8)
    canvas[top : top + new[0], left : left + new[1]] = _resize(pixels, new, spec)
    y, x = height / new[0], width / new[1]  # pixels of the image per pixel of the canvas
    return canvas, Box(-top * y, -left * x, (max_height - top) * y, (max_width - left) * x)


def _on_a_square(pixels: Pixels, color: Color) -> tuple[Pixels, Size]:
    """The image in the middle of a coloured square, and where its corner is."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    if side * side > MAX_SQUARE:
        raise ImageError(
            f"this model lays an image of {width}x{height} pixels on a square of {side}x{side} "
            f"({3 * side * side / 1e9:.1f} GB); expected sides of at most "
            f"{math.isqrt(MAX_SQUARE)} pixels: scale it down first"
        )
    top, left = (side - height) // 2, (side - width) // 2
    square = np.empty((side, side, 3), np.uint8)
    square[:] = color
    square[top : top + height, left : left + width] = pixels
    return square, (top, left)


def _resized_and_cropped(pixels: Pixels, spec: ImageSpec) -> tuple[Pixels, Box]:
    """A square of the tower's size, and what it shows of `pixels`."""
    height, width = pixels.shape[:2]
    new = spec.size
    if spec.resize == "shortest":
        short, long = min(height, width), max(height, width)
        follows = int(spec.size[0] * long / short)
        new = (spec.size[0], follows) if height < width else (follows, spec.size[0])
    resized = _resize(pixels, new, spec)
    top, left = 0, 0
    if spec.crop:
        resized, (top, left) = _center_crop(resized, spec.crop)
    y, x = height / new[0], width / new[1]
    bottom, right = top + resized.shape[0], left + resized.shape[1]
    return resized, Box(top * y, left * x, bottom * y, right * x)


def _center_crop(pixels: Pixels, crop: Size) -> tuple[Pixels, Size]:
    """The middle, and where its corner was (negative where black was added)."""
    top, left = (pixels.shape[0] - crop[0]) // 2, (pixels.shape[1] - crop[1]) // 2
    out = np.zeros((*crop, 3), np.uint8)
    y, x = max(0, -top), max(0, -left)
    inside = pixels[max(0, top) : top + crop[0], max(0, left) : left + crop[1]]
    out[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return out, (top, left)


def _resize(pixels: Pixels, size: Size, spec: ImageSpec) -> Pixels:
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((size[1], size[0]), _FILTERS[spec.resample]))
