"""Image preparation step by step: sizes, offsets and colours against Pillow calls written out.

The numbers in them were taken from transformers 5.23; test_preprocess_hf.py compares with it.
"""

import numpy as np
import pytest
from PIL import Image

from atp_cpp import ImageError
from atp_cpp.images.prepare import Box, best_pinpoint, prepare
from atp_cpp.images.spec import ImageSpec
from support.pictures_of_all_shapes import SHAPES, picture

BICUBIC = Image.Resampling.BICUBIC
CROPPED = ImageSpec("shortest", (56, 56), crop=(56, 56))
PINPOINTS = ((56, 112), (112, 56), (112, 112), (168, 56), (56, 168))
NEXT = ImageSpec("shortest", (56, 56), crop=(56, 56), pinpoints=PINPOINTS, tile=56)
ONEVISION = ImageSpec(
    "exact", (56, 56), pad_color=(127, 126, 125), pinpoints=PINPOINTS, tile=56, max_tiles=9
)


def resized(pixels, height, width, resample=BICUBIC):
    return np.asarray(Image.fromarray(pixels).resize((width, height), resample))


def boxed(canvas_size, top, left, pixels, color=0):
    canvas = np.full((*canvas_size, 3), color, np.uint8)
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return canvas


@pytest.mark.parametrize(
    ("shape", "new", "corner"),
    [
        ((97, 131), (56, 75), (0, 9)),  # int(56 * 131 / 97), (75 - 56) // 2
        ((131, 97), (75, 56), (9, 0)),
        ((56, 56), (56, 56), (0, 0)),
        ((13, 200), (56, 861), (0, 402)),
        ((1, 7), (56, 392), (0, 168)),
    ],
)
def test_the_shorter_side_is_resized_and_the_middle_cut_out(shape, new, corner):
    pixels = picture(shape)
    (y, x), out = corner, prepare(pixels, CROPPED)
    expected = resized(pixels, *new)[y : y + 56, x : x + 56]
    np.testing.assert_array_equal(out.tiles, expected[None])
    assert (out.size, out.grid, out.canvas) == (shape, (0, 0), None)
    box = out.overview
    assert box.top == pytest.approx(y * shape[0] / new[0])
    assert box.right == pytest.approx((x + 56) * shape[1] / new[1])


def test_a_crop_larger_than_the_image_is_filled_with_black():
    spec = ImageSpec("shortest", (41, 41), "bilinear", crop=(56, 56))
    pixels = picture((20, 25))
    inner = resized(pixels, 41, 51, Image.Resampling.BILINEAR)
    out = prepare(pixels, spec)
    # ceil(15 / 2) above and ceil(5 / 2) to the left: more before than behind
    np.testing.assert_array_equal(out.tiles[0], boxed((56, 56), 8, 3, inner))
    assert out.overview.top == pytest.approx(-8 * 20 / 41)
    assert out.overview.bottom == pytest.approx(48 * 20 / 41)


def test_an_exact_size_takes_the_whole_image():
    pixels = picture((97, 31))
    out = prepare(pixels, ImageSpec("exact", (56, 56)))
    np.testing.assert_array_equal(out.tiles[0], resized(pixels, 56, 56))
    assert out.overview == Box(0, 0, 97, 31)


@pytest.mark.parametrize("shape", [(20, 31), (31, 20), (25, 25), (1, 2)])
def test_padding_makes_a_coloured_square(shape):
    spec = ImageSpec("shortest", (56, 56), crop=(56, 56), pad_color=(122, 116, 104))
    pixels, side = picture(shape), max(shape)
    top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
    square = boxed((side, side), top, left, pixels, color=(122, 116, 104))
    out = prepare(pixels, spec)
    np.testing.assert_array_equal(out.tiles[0], resized(square, 56, 56))
    assert out.overview == Box(-top, -left, side - top, side - left)


@pytest.mark.parametrize(
    ("shape", "canvas", "new", "corner"),
    [
        ((97, 131), (112, 112), (83, 112), (14, 0)),  # ceil(97 * 112 / 131); 29 px of black
        ((131, 97), (112, 112), (112, 83), (0, 14)),
        ((40, 160), (56, 168), (42, 168), (7, 0)),
        ((30, 50), (56, 112), (56, 94), (0, 9)),  # fits the first that loses nothing
        ((200, 13), (168, 56), (168, 11), (0, 22)),
    ],
)
def test_tiles_are_cut_from_a_black_canvas_behind_the_whole_image(shape, canvas, new, corner):
    pixels, out = picture(shape), prepare(picture(shape), NEXT, n_images=3)
    drawn = boxed(canvas, *corner, resized(pixels, *new))
    rows, cols = canvas[0] // 56, canvas[1] // 56
    assert (out.grid, len(out.tiles)) == ((rows, cols), 1 + rows * cols)
    np.testing.assert_array_equal(out.tiles[0], resized(pixels, 56, 56))
    for k, tile in enumerate(out.tiles[1:]):
        y, x = divmod(k, cols)
        expected = drawn[56 * y : 56 * y + 56, 56 * x : 56 * x + 56]
        np.testing.assert_array_equal(tile, expected)
    assert out.overview == Box(0, 0, *shape)
    assert out.canvas.top == pytest.approx(-corner[0] * shape[0] / new[0])
    assert out.canvas.right == pytest.approx((canvas[1] - corner[1]) * shape[1] / new[1])


def test_the_best_canvas_shows_most_and_wastes_least():
    canvases = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
    sizes = {
        (480, 640): (672, 672),
        (300, 600): (336, 672),
        (600, 300): (672, 336),
        (300, 1500): (336, 1008),
        (100, 100): (336, 672),
        (5000, 4000): (672, 672),
    }
    assert {size: best_pinpoint(size, canvases) for size in sizes} == sizes


def test_several_images_get_squares_where_the_rule_has_a_colour():
    pixels = picture((40, 160))
    alone, among = prepare(pixels, ONEVISION), prepare(pixels, ONEVISION, n_images=2)
    assert (alone.grid, len(alone.tiles)) == ((1, 3), 4)
    square = boxed((160, 160), 60, 0, pixels, color=(127, 126, 125))
    np.testing.assert_array_equal(among.tiles[0], resized(square, 56, 56))
    assert (among.grid, len(among.tiles), among.canvas) == ((0, 0), 1, None)
    assert prepare(pixels, NEXT, n_images=2).grid == (1, 3)


@pytest.mark.parametrize("spec", [CROPPED, NEXT, ONEVISION], ids=["crop", "next", "onevision"])
def test_every_shape_becomes_squares_and_is_left_alone_itself(spec):
    for shape in SHAPES:
        pixels = picture(shape)
        before = pixels.copy()
        pixels.flags.writeable = False
        out = prepare(pixels, spec)
        assert out.tiles.shape == (1 + out.grid[0] * out.grid[1], 56, 56, 3)
        assert out.tiles.dtype == np.uint8
        assert out.tiles.flags.c_contiguous
        np.testing.assert_array_equal(pixels, before)


def test_a_square_that_would_fill_the_memory():
    """A file of 146 kB can hold 100000x500 pixels; laid on a square they are 30 GB."""
    pixels = np.broadcast_to(np.uint8(0), (500, 100_000, 3))
    with pytest.raises(ImageError) as refused:
        prepare(pixels, ImageSpec("exact", (56, 56), pad_color=(1, 2, 3)))
    assert "100000x500 pixels on a square of 100000x100000 (30.0 GB); expected sides of at " in str(
        refused.value
    )
    assert "at most 23170 pixels" in str(refused.value)
