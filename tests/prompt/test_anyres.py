"""Packing of tiles: the engine's against a twin in NumPy, and what is refused."""

import numpy as np
import pytest

from atp_cpp import _core as core
from support import anyres_twin as twin
from support import tolerance
from support.rig import nmse

GRIDS = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 3), (6, 6), (2, 5)]
WIDTH = 5


def features(grid, side, seed=0):
    shape = (1 + grid[0] * grid[1], side * side, WIDTH)
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def sizes(n, seed=0):
    """Heights and widths of 1 to 2,000 pixels, evenly in their logarithm."""
    drawn = 2 ** np.random.default_rng(seed).uniform(0, 11, (n, 2))
    return [(int(h), int(w)) for h, w in drawn]


NEWLINE = np.arange(WIDTH, dtype=np.float32) + 100


@pytest.mark.parametrize("grid", GRIDS)
def test_layouts_are_the_twins(grid):
    names = ("top", "left", "rows", "cols", "out_rows", "out_cols")
    for side in (1, 4, 24, 27):
        for size in sizes(300, seed=side):
            for max_tiles in (0, 1, 4, 9):
                cut, out = twin.layout(side, grid, size, max_tiles)
                if 0 in out and out != cut[2:]:
                    with pytest.raises(core.ImageError, match="too narrow to be shrunk to"):
                        core.tile_layout(side, grid=grid, size=size, max_tiles=max_tiles)
                    continue
                ours = core.tile_layout(side, grid=grid, size=size, max_tiles=max_tiles)
                assert [ours[name] for name in names] == [*cut, *out], (side, size, max_tiles)


def test_whole_numbers_that_rounding_missed_count():
    """height * (72 / width) may come out a bit below a whole number; round(…, 7) makes it whole."""
    missed = 0
    for width in range(3, 1000):
        for height in range(1, width // 3):
            (top, _, rows, _), _ = twin.layout(24, (1, 3), (height, width))
            if top != (24 - int(height * (72 / width))) // 2:
                missed += 1
                at = core.tile_layout(24, grid=(1, 3), size=(height, width))
                assert (at["top"], at["rows"]) == (top, rows)
    assert missed == 3


def test_square_images_shrink_as_pythons_floor_division_says():
    """n / (n / 81) is 81 or a bit below; // divides by the exact remainder, and may say 80."""
    seen = set()
    for side in range(10, 41):
        for n in range(4, 9):
            size, grid = (1000, 1000), (n, n)
            try:
                at = core.tile_layout(side, grid=grid, size=size, max_tiles=9)
            except core.ImageError:
                continue
            _, out = twin.layout(side, grid, size, 9)
            assert (at["out_rows"], at["out_cols"]) == out
            seen.add(3 * side - out[0])
    assert seen == {0, 1}


@pytest.mark.parametrize("max_tiles", [0, 2])
@pytest.mark.parametrize("newline", [NEWLINE, ()], ids=["newline", "plain"])
@pytest.mark.parametrize("grid", GRIDS)
def test_rows_and_grids_are_the_twins(grid, newline, max_tiles):
    for side in (2, 7):
        values = features(grid, side)
        for size in sizes(12, seed=side):
            options = {"grid": grid, "size": size, "newline": newline, "max_tiles": max_tiles}
            try:
                rows, grids = core.pack_tiles(values, **options)
            except core.ImageError:
                assert 0 in twin.layout(side, grid, size, max_tiles)[1]
                continue
            expected, expected_grids = twin.pack(values, **options)
            assert grids == expected_grids
            assert sum(r * c for r, c in grids) == len(rows)
            what = "shrunk tiles = NumPy" if max_tiles else "packed tiles = NumPy"
            tolerance.check(nmse(expected, rows), "cpu", "f32", what)


def test_the_overview_comes_first_and_each_line_ends():
    values = features((1, 2), 3)
    rows, grids = core.pack_tiles(values, grid=(1, 2), size=(30, 60), newline=NEWLINE)
    assert grids == [(3, 3), (3, 7)]
    np.testing.assert_array_equal(rows[:9], values[0])
    lines = rows[9:].reshape(3, 7, WIDTH)
    np.testing.assert_array_equal(lines[:, 6], np.broadcast_to(NEWLINE, (3, WIDTH)))
    np.testing.assert_array_equal(lines[:, :3].reshape(9, WIDTH), values[1])
    np.testing.assert_array_equal(lines[:, 3:6].reshape(9, WIDTH), values[2])


def test_an_overview_alone_has_one_end_or_none():
    values = features((0, 0), 3)
    rows, grids = core.pack_tiles(values, grid=(0, 0), size=(9, 9), newline=NEWLINE)
    assert grids == [(3, 3), (1, 1)]
    np.testing.assert_array_equal(rows, [*values[0], NEWLINE])
    rows, grids = core.pack_tiles(values, grid=(0, 0), size=(9, 9))
    assert grids == [(3, 3)]
    np.testing.assert_array_equal(rows, values[0])
    _, grids = core.pack_tiles(values[:, :7], grid=(0, 0), size=(9, 9))
    assert grids == [(1, 7)], "no square: one line"


def test_a_strip_too_thin_for_a_cell_leaves_the_overview():
    values = features((1, 3), 4)
    rows, grids = core.pack_tiles(values, grid=(1, 3), size=(1, 300), newline=NEWLINE)
    assert grids == [(4, 4)]
    np.testing.assert_array_equal(rows, values[0])
    rows, grids = core.pack_tiles(values.repeat(1, 0), grid=(3, 1), size=(300, 1), newline=NEWLINE)
    assert grids == [(4, 4), (12, 1)], "the ends of its lines stay"
    np.testing.assert_array_equal(rows[16:], np.broadcast_to(NEWLINE, (12, WIDTH)))


PACKING = {"grid": (1, 2), "size": (30, 60), "newline": NEWLINE}


@pytest.mark.parametrize(
    ("values", "options", "reason"),
    [
        (features((1, 1), 3), {}, r"features must be \[3, n_tokens, n_embd\], got \[2, 9, 5\]"),
        (features((1, 2), 3)[0], {}, r"got \[9, 5\]"),
        (np.zeros((3, 0, 5)), {}, r"got \[3, 0, 5\]"),
        (features((1, 2), 3), {"newline": [1.0]}, r"newline \[n_embd\], got \[1\]"),
        (features((1, 2), 3)[:, :7], {}, "tiles of 7 image tokens make no square grid"),
        (features((1, 2), 3), {"grid": (0, 2)}, r"1 to 1024 rows and columns, .* got \(0, 2\)"),
        (features((1, 2), 3), {"grid": (1, 2000)}, r"got \(1, 2000\)"),
        (features((1, 2), 3), {"size": (0, 60)}, r"height and width in pixels, .* got \(0, 60\)"),
        (features((1, 2), 3), {"max_tiles": -1}, "max_tiles of at least 0; .* and -1"),
    ],
)
def test_what_does_not_fit_together_is_refused(values, options, reason):
    with pytest.raises(core.ImageError, match=reason):
        core.pack_tiles(values, **(PACKING | options))


def test_layouts_need_a_grid():
    for side, grid in ((0, (1, 1)), (4, (0, 0)), (2000, (1, 1))):
        with pytest.raises(core.ImageError, match="in a grid of at least one; got"):
            core.tile_layout(side, grid=grid, size=(9, 9))
