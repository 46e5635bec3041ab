"""A picture of what was kept: the image, and one copy per cut with the dropped patches dimmed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from atp_cpp._core import Report
from atp_cpp.config import CutSpec
from atp_cpp.errors import AtpError
from atp_cpp.images import Pixels

PANEL_SIDE = 448  # px, longer side of each copy
_GAP = 12  # px between copies
_LABEL_HEIGHT = 26  # px
_COLUMNS = 4
_DIM = 0.25  # brightness of a dropped patch, in grey
_TINT = (40, 110, 255)  # of a patch that the spatial rule alone kept
_TINT_SHARE = 0.45
_PAPER = (255, 255, 255)
_INK = (32, 32, 32)


def render(
    pixels: Pixels, report: Report, plan: Sequence[CutSpec], *, image_index: int = 0
) -> Image.Image:
    """Draws what each cut kept of one image.

    Args:
        pixels: uint8 [h, w, 3], the image as it was given.
        report: of the caption.
        plan: the cuts of the caption, as many as ``report.kept``.
        image_index: which image of the prompt.

    Returns:
        RGB picture: the image itself, then one panel per cut with its label, four in a line. What
        policy atp kept for its place on the grid alone, and not for its attention, is blue.

    Raises:
        AtpError: no such image in the report, or counts that do not fit together.
    """
    if len(plan) != len(report.kept):
        raise AtpError(f"expected {len(report.kept)} cuts as in the report, got {len(plan)}")
    n_tokens = int(np.prod(_grid(report, image_index)))
    small = _scaled(pixels)
    panels = [(small, f"the image: {n_tokens} tokens")]
    for k, cut in enumerate(plan):
        mask = kept_mask(report, k, image_index)
        by_grid = spatial_mask(report, k, image_index)
        label = f"after layer {cut.after}, {cut.policy}: {int(mask.sum())} of {n_tokens}"
        if by_grid.any():
            label += f", {int(by_grid.sum())} by the grid (blue)"
        panels.append((dimmed(small, mask, by_grid), label))
    return sheet(panels)


def kept_mask(report: Report, cut_index: int, image_index: int = 0) -> NDArray[np.bool_]:
    """Which patches of an image are alive after a cut: bool [rows, cols] on its patch grid."""
    return _cells(report, report.kept[cut_index], image_index)


def spatial_mask(report: Report, cut_index: int, image_index: int = 0) -> NDArray[np.bool_]:
    """Which of them ATP's spatial rule alone kept: bool [rows, cols], all False elsewhere."""
    alone = report.kept_spatial[cut_index] if cut_index < len(report.kept_spatial) else []
    return _cells(report, alone, image_index)


def _cells(report: Report, indices: Sequence[int], image_index: int) -> NDArray[np.bool_]:
    rows, cols = _grid(report, image_index)
    first = sum(r * c for r, c in report.grids[:image_index])
    marked = np.zeros(report.n_image_tokens, dtype=np.bool_)
    marked[np.asarray(indices, dtype=np.int64)] = True
    return marked[first : first + rows * cols].reshape(rows, cols)


def dimmed(
    pixels: Pixels, mask: NDArray[np.bool_], tinted: NDArray[np.bool_] | None = None
) -> Pixels:
    """The image with dropped patches dark and grey.

    A grid of another shape than the image's means that the encoder padded it: the image stands in
    the middle of the grid, as libmtmd puts it there.

    Args:
        pixels: uint8 [h, w, 3].
        mask: bool [rows, cols], True where a patch is kept.
        tinted: bool [rows, cols], True where a kept patch is to be blue.
    """
    height, width = pixels.shape[:2]
    rows, cols = mask.shape
    scale = min(cols / width, rows / height)  # patches per pixel
    x = ((np.arange(width) + 0.5) * scale + (cols - width * scale) / 2).astype(np.int64)
    y = ((np.arange(height) + 0.5) * scale + (rows - height * scale) / 2).astype(np.int64)
    patch = np.clip(y, 0, rows - 1)[:, None], np.clip(x, 0, cols - 1)[None, :]
    alive = mask[patch]
    if tinted is not None:
        blue = np.rint((1 - _TINT_SHARE) * pixels + _TINT_SHARE * np.array(_TINT)).astype(np.uint8)
        pixels = np.where(tinted[patch][..., None], blue, pixels)
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    dark = np.rint(_DIM * grey).astype(np.uint8)
    return np.where(alive[..., None], pixels, dark[..., None])


def _grid(report: Report, image_index: int) -> tuple[int, int]:
    if not 0 <= image_index < len(report.grids):
        raise AtpError(
            f"the prompt had {len(report.grids)} images; there is no image {image_index}"
        )
    n_cells = sum(rows * cols for rows, cols in report.grids)
    if n_cells != report.n_image_tokens:
        raise AtpError(
            f"this model's {report.n_image_tokens} image tokens are not {n_cells} cells of a grid; "
            "there is no picture of them"
        )
    return report.grids[image_index]


def _scaled(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    factor = PANEL_SIDE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def sheet(panels: Sequence[tuple[Pixels, str]]) -> Image.Image:
    """Pictures of one size (uint8 [h, w, 3]) with their labels, four in a line."""
    font = ImageFont.load_default(15)
    height = panels[0][0].shape[0] + _LABEL_HEIGHT
    label_width = max(int(font.getlength(label)) for _, label in panels)
    width = max(panels[0][0].shape[1], label_width)
    n_cols = min(_COLUMNS, len(panels))
    n_rows = -(-len(panels) // n_cols)
    size = (n_cols * (width + _GAP) + _GAP, n_rows * (height + _GAP) + _GAP)
    page = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(page)
    for i, (picture, label) in enumerate(panels):
        left = _GAP + (i % n_cols) * (width + _GAP)
        top = _GAP + (i // n_cols) * (height + _GAP)
        draw.text((left, top), label, fill=_INK, font=font)
        page.paste(Image.fromarray(picture), (left, top + _LABEL_HEIGHT))
    return page
