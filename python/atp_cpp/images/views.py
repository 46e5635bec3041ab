"""Between prepared images and the engine: what goes in, and what part of an image each grid shows.

A prompt's image tokens lie on patch grids: one for an image, or one for its overview and one for
all its tiles together, whose last column ends the lines and shows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atp_cpp._core import Report, Tiles, tile_layout
from atp_cpp.images.prepare import Box, Prepared
from atp_cpp.images.spec import ImageSpec


@dataclass(frozen=True, slots=True)
class View:
    """One patch grid of a prompt.

    Attributes:
        image: which image of the prompt it is of.
        name: "overview" or "tiles", "" for an image of one grid.
        box: what its cells show, in pixels of the image; None: nothing, it ends a line.
        cols: its columns that show something; there may be one more, which ends the lines.
    """

    image: int
    name: str
    box: Box | None
    cols: int


def as_tiles(prepared: Prepared, spec: ImageSpec) -> Tiles:
    """A prepared image as the engine takes it."""
    return Tiles(prepared.tiles, prepared.grid, prepared.size, max_tiles=spec.max_tiles)


def views_of(prepared: Sequence[Prepared], spec: ImageSpec, report: Report) -> tuple[View, ...]:
    """What the grids of a caption show.

    Args:
        prepared: the images of the prompt, in order.
        spec: the rule they were prepared by.
        report: of the caption.

    Returns:
        As many as ``report.grids``.
    """
    views: list[View] = []
    for (rows, cols), image in zip(report.grids, report.grid_images, strict=True):
        one = prepared[image]
        if not views or views[-1].image != image:
            views.append(View(image, "overview" if one.canvas else "", one.overview, cols))
        elif one.canvas:
            side = views[-1].cols
            views.append(_tiles_view(image, one, one.canvas, side, spec, rows))
        else:
            views.append(View(image, "", None, 0))
    return tuple(views)


def _tiles_view(
    image: int, prepared: Prepared, canvas: Box, side: int, spec: ImageSpec, rows: int
) -> View:
    """The part of the canvas that is left of the tiles' grid."""
    at = tile_layout(side, grid=prepared.grid, size=prepared.size, max_tiles=spec.max_tiles)
    assert at["out_rows"] == rows
    y = (canvas.bottom - canvas.top) / (side * prepared.grid[0])  # pixels per cell
    x = (canvas.right - canvas.left) / (side * prepared.grid[1])
    top, left = canvas.top + y * at["top"], canvas.left + x * at["left"]
    box = Box(top, left, top + y * at["rows"], left + x * at["cols"])
    return View(image, "tiles", box if at["cols"] else None, at["out_cols"])
