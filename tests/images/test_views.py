"""What part of an image a grid shows, told by an image whose colours are its coordinates."""

import numpy as np
import pytest

from atp_cpp import _core as core
from atp_cpp.images.prepare import prepare
from atp_cpp.images.spec import ImageSpec
from atp_cpp.images.views import as_tiles, views_of
from support.fake_engine import FakeReport
from support.tiny_anyres import NEXT, ONEVISION, SIDE

CROPPED = ImageSpec("shortest", (56, 56), crop=(56, 56))
OVERSIZED = ImageSpec("shortest", (72, 72), "bilinear", crop=(56, 56))
PADDED = ImageSpec("shortest", (56, 56), crop=(56, 56), pad_color=(0, 0, 0))
RULES = {
    "crop": CROPPED,
    "small crop": OVERSIZED,
    "pad": PADDED,
    "exact": ImageSpec("exact", (56, 56)),
    "next": NEXT,
    "onevision": ONEVISION,
}
TOKENS = 7  # image tokens in a line of a tile, 8 pixels each
SHAPES = [(112, 112), (300, 301), (200, 500), (640, 250), (90, 900), (1200, 200), (61, 47)]


def coordinates(shape):
    """uint8 [h, w, 3]: red grows from left to right, green from top to bottom, both 25 to 225."""
    height, width = shape
    out = np.zeros((height, width, 3))
    out[..., 0] = 25 + 200 * (np.arange(width) + 0.5) / width
    out[..., 1] = 25 + 200 * (np.arange(height)[:, None] + 0.5) / height
    out[..., 2] = 255
    return np.rint(out).astype(np.uint8)


def seen(prepared, newline, max_tiles):
    """Mean colours of the patches, packed as their features would be: grids of [rows, cols, 3]."""
    n = len(prepared.tiles)
    patches = prepared.tiles.reshape(n, TOKENS, SIDE // TOKENS, TOKENS, SIDE // TOKENS, 3)
    colours = patches.mean(axis=(2, 4)).reshape(n, TOKENS**2, 3).astype(np.float32)
    rows, grids = core.pack_tiles(
        colours, grid=prepared.grid, size=prepared.size, newline=newline, max_tiles=max_tiles
    )
    out, first = [], 0
    for r, c in grids:
        out.append(rows[first : first + r * c].reshape(r, c, 3))
        first += r * c
    return out


def report_of(grids, images):
    n = sum(r * c for r, c in grids)
    return FakeReport(n, n, 0, [], n, [], grids, grid_images=images)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_cells_show_the_part_of_the_image_that_the_view_says(rule, shape):
    spec = RULES[rule]
    prepared = prepare(coordinates(shape), spec)
    newline = np.full(3, -1.0, np.float32) if spec.pinpoints else ()
    grids = seen(prepared, newline, spec.max_tiles)
    report = report_of([g.shape[:2] for g in grids], [0] * len(grids))
    views = views_of([prepared], spec, report)
    assert [view.name for view in views] == (["overview", "tiles"] if spec.pinpoints else [""])
    for colours, view in zip(grids, views, strict=True):
        rows, cols = colours.shape[0], view.cols
        assert colours.shape[1] == cols + (view.name == "tiles")
        box = view.box
        y = box.top + (np.arange(rows) + 0.5) * (box.bottom - box.top) / rows
        x = box.left + (np.arange(cols) + 0.5) * (box.right - box.left) / cols
        pure = colours[:, :cols, 2] > 254  # without any padding in them
        assert pure.mean() > 0.1 or (rule, shape) == ("pad", (90, 900))  # a thin line on black
        expected = np.broadcast_to(25 + 200 * x / shape[1], (rows, cols))
        np.testing.assert_allclose(colours[:, :cols, 0][pure], expected[pure], atol=2.5)
        expected = np.broadcast_to(25 + 200 * y[:, None] / shape[0], (rows, cols))
        np.testing.assert_allclose(colours[:, :cols, 1][pure], expected[pure], atol=2.5)


def test_grids_of_several_images_are_told_apart():
    images = [prepare(coordinates(shape), NEXT, n_images=2) for shape in ((60, 100), (200, 50))]
    grids = [seen(image, np.zeros(3, np.float32), 0) for image in images]
    shapes = [g.shape[:2] for of_image in grids for g in of_image]
    views = views_of(images, NEXT, report_of(shapes, [0, 0, 1, 1]))
    assert [(view.image, view.name) for view in views] == [
        (0, "overview"), (0, "tiles"), (1, "overview"), (1, "tiles"),
    ]  # fmt: skip
    assert views[2].box.bottom == 200


def test_an_end_behind_an_overview_shows_nothing():
    images = [prepare(coordinates((60, 100)), ONEVISION, n_images=2)] * 2
    views = views_of(images, ONEVISION, report_of([(7, 7), (1, 1)] * 2, [0, 0, 1, 1]))
    assert [view.box is None for view in views] == [False, True, False, True]
    assert views[0].box.top == -20, "on a square of 100 pixels"
    assert [view.image for view in views] == [0, 0, 1, 1]


def test_tiles_carry_what_packing_needs():
    pixels = coordinates((70, 333))
    prepared = prepare(pixels, ONEVISION)
    tiles = as_tiles(prepared, ONEVISION)
    assert (tiles.grid, tiles.size, tiles.max_tiles) == (prepared.grid, (70, 333), 2)
    np.testing.assert_array_equal(tiles.tiles, prepared.tiles)
