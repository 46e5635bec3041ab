"""A picture of what was kept: the image, and one copy per cut with the dropped patches dimmed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from atp_cpp._core import Report
from atp_cpp.errors import AtpError
from atp_cpp.images.load import Pixels
from atp_cpp.images.prepare import Box
from atp_cpp.images.views import View
from atp_cpp.options.plan import CutSpec

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
    pixels: Pixels,
    report: Report,
    plan: Sequence[CutSpec],
    *,
    image_index: int = 0,
    views: Sequence[View] = (),
) -> Image.Image:
    """Draws what each cut kept of one image.

    Args:
        pixels: uint8 [h, w, 3], the image as it was given.
        report: of the caption.
        plan: the cuts of the caption, as many as ``report.kept``.
        image_index: which image of the prompt.
        views: of the caption; empty if libmtmd prepared the image.

    Returns:
        RGB picture: the image itself, then one panel with a label for each cut, four in a line. An
        image that was cut into tiles has two panels for each cut: the overview and the tiles.
        Patches that policy atp kept only for their place on the grid are blue. Parts of the image
        that the model did not see are as dark as dropped patches.

    Raises:
        AtpError: no such image in the report, or counts that do not fit together.
    """
    if len(plan) != len(report.kept):
        raise AtpError(f"expected {len(report.kept)} cuts as in the report, got {len(plan)}")
    mine = _grids_of(report, image_index, views)
    n_breaks = int(_has_breaks(report))
    n_tokens = sum(int(np.prod(_grid(report, g))) - n_breaks for g in mine)
    small = _scaled(pixels)
    panels = [(small, f"the image: {n_tokens} tokens")]
    for k, cut in enumerate(plan):
        for g in mine:
            view = views[g] if views else None
            if view is None or view.box is not None:
                title = f"after layer {cut.after}, {cut.name}"
                panels.append(_panel(small, pixels.shape, report, k, g, view, title))
    return sheet(panels)


def _panel(
    small: Pixels,
    shape: tuple[int, ...],
    report: Report,
    cut_index: int,
    grid_index: int,
    view: View | None,
    title: str,
) -> tuple[Pixels, str]:
    """What a cut kept of one grid, drawn on the image as it is shown, and its label.

    Args:
        small: uint8 [h, w, 3], the image as it is shown.
        shape: height and width of the image as it was given, and what follows.
        report: of the caption.
        cut_index: which cut.
        grid_index: which grid of the report.
        view: what the grid shows; None if libmtmd prepared the image.
        title: what the label begins with.
    """
    mask = kept_mask(report, cut_index, grid_index)
    by_grid = spatial_mask(report, cut_index, grid_index)
    name = f", {view.name}" if view and view.name else ""
    label = f"{title}{name}: {int(mask.sum())} of {mask.size}"
    if by_grid.any():
        label += f", {int(by_grid.sum())} by the grid (blue)"
    if view is None or view.box is None:
        return dimmed(small, mask, by_grid), label
    y, x = small.shape[0] / shape[0], small.shape[1] / shape[1]
    box = Box(y * view.box.top, x * view.box.left, y * view.box.bottom, x * view.box.right)
    return dimmed(small, mask[:, : view.cols], by_grid[:, : view.cols], box=box), label


def kept_mask(report: Report, cut_index: int, grid_index: int = 0) -> NDArray[np.bool_]:
    """Which patches are alive after a cut: bool [rows, cols] on a patch grid of the report.

    Without the column of line breaks that the grid of Pixtral and Mistral 3 has.
    """
    return _cells(report, report.kept[cut_index], grid_index)


def spatial_mask(report: Report, cut_index: int, grid_index: int = 0) -> NDArray[np.bool_]:
    """Which of them ATP's spatial rule alone kept: bool [rows, cols], all False elsewhere."""
    alone = report.kept_spatial[cut_index] if cut_index < len(report.kept_spatial) else []
    return _cells(report, alone, grid_index)


def _cells(report: Report, indices: Sequence[int], grid_index: int) -> NDArray[np.bool_]:
    rows, cols = _grid(report, grid_index)
    n_breaks = int(_has_breaks(report))
    first = sum(r * c - n_breaks for r, c in report.grids[:grid_index])
    marked = np.zeros(report.n_image_tokens + n_breaks, dtype=np.bool_)
    marked[np.asarray(indices, dtype=np.int64)] = True
    cells = marked[first : first + rows * cols].reshape(rows, cols)
    return cells[:, : cols - n_breaks]


def dimmed(
    pixels: Pixels,
    mask: NDArray[np.bool_],
    tinted: NDArray[np.bool_] | None = None,
    *,
    box: Box | None = None,
) -> Pixels:
    """The image with dropped patches dark and grey.

    Without a box, a grid of another shape than the image's means that the encoder padded it: the
    image stands in the middle of the grid, as libmtmd puts it there.

    Args:
        pixels: uint8 [h, w, 3].
        mask: bool [rows, cols], True where a patch is kept.
        tinted: bool [rows, cols], True where a kept patch is to be blue.
        box: what the grid shows, in pixels of `pixels`; what is outside is dark, too.
    """
    height, width = pixels.shape[:2]
    rows, cols = mask.shape
    if box is None:
        side = max(width / cols, height / rows)  # pixels per patch
        top, left = (height - rows * side) / 2, (width - cols * side) / 2
        box = Box(top, left, top + rows * side, left + cols * side)
    x = np.floor((np.arange(width) + 0.5 - box.left) * cols / (box.right - box.left))
    y = np.floor((np.arange(height) + 0.5 - box.top) * rows / (box.bottom - box.top))
    seen = ((y >= 0) & (y < rows))[:, None] & ((x >= 0) & (x < cols))[None, :]
    row = np.clip(y, 0, rows - 1).astype(np.int64)
    col = np.clip(x, 0, cols - 1).astype(np.int64)
    patch = row[:, None], col[None, :]
    alive = mask[patch] & seen
    if tinted is not None:
        blue = np.rint((1 - _TINT_SHARE) * pixels + _TINT_SHARE * np.array(_TINT)).astype(np.uint8)
        pixels = np.where((tinted[patch] & seen)[..., None], blue, pixels)
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    dark = np.rint(_DIM * grey).astype(np.uint8)
    return np.where(alive[..., None], pixels, dark[..., None])


def _grids_of(report: Report, image_index: int, views: Sequence[View]) -> list[int]:
    """Which grids of the report an image has."""
    images = [view.image for view in views] or list(range(len(report.grids)))
    if image_index not in images:
        n_images = len(set(images))
        raise AtpError(f"the prompt had {n_images} images; there is no image {image_index}")
    return [grid for grid, image in enumerate(images) if image == image_index]


def _grid(report: Report, grid_index: int) -> tuple[int, int]:
    n_cells = sum(rows * cols for rows, cols in report.grids)
    if n_cells != report.n_image_tokens and not _has_breaks(report):
        raise AtpError(
            f"this model's {report.n_image_tokens} image tokens are not {n_cells} cells of a grid; "
            "there is no picture of them"
        )
    return report.grids[grid_index]


def _has_breaks(report: Report) -> bool:
    """Whether a token that shows nothing stands between two lines of each grid (Pixtral)."""
    n_cells = sum(rows * cols for rows, cols in report.grids)
    return n_cells == report.n_image_tokens + len(report.grids)


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
