"""Packing of tiles against pack_image_features of transformers' LLaVA-NeXT and LLaVA-OneVision."""

from types import SimpleNamespace

import numpy as np
import pytest

from atp_cpp import _core as core
from atp_cpp.images.prepare import best_pinpoint
from support import tolerance
from support.rig import nmse

pytestmark = pytest.mark.torch

WIDTH = 6
NEXT_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
MANY = [[384 * y, 384 * x] for y in range(1, 7) for x in range(1, 7)]
FAMILIES = {"next": (336, 14, NEXT_PINPOINTS, 0), "onevision": (384, 14, MANY, 9)}


def theirs(family, features, sizes, newline):
    """Rows of each image, by Hugging Face's own method on a model of configuration alone."""
    import torch
    from transformers import LlavaNextModel, LlavaOnevisionModel

    image_size, patch_size, pinpoints, max_tiles = FAMILIES[family]
    vision = SimpleNamespace(image_size=image_size, patch_size=patch_size)
    config = SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints)
    tensors = [torch.from_numpy(values) for values in features]
    args = (SimpleNamespace(config=config), tensors, torch.tensor(sizes))
    if family == "next":
        packed, _ = LlavaNextModel.pack_image_features(
            *args, vision_feature_select_strategy="full", image_newline=newline
        )
    else:
        packed, _ = LlavaOnevisionModel.pack_image_features(
            *args, image_newline=newline, vision_aspect_ratio=f"anyres_max_{max_tiles}"
        )
    return [rows.numpy() for rows in packed]


def sizes(n, least, seed):
    drawn = 2 ** np.random.default_rng(seed).uniform(least, 12, (n, 2))
    return [(int(h), int(w)) for h, w in drawn]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_are_theirs(family):
    import torch

    image_size, patch_size, pinpoints, max_tiles = FAMILIES[family]
    side = image_size // patch_size
    rng = np.random.default_rng(1)
    newline = rng.standard_normal(WIDTH).astype(np.float32)
    pinned = tuple((h, w) for h, w in pinpoints)
    shrunk = 0
    for size in [
        (480, 640),
        (1, 300),
        (300, 1),
        (2000, 1999),
        *sizes(40, 3, seed=3),
        *sizes(10, 10, 4),
    ]:
        canvas = best_pinpoint(size, pinned)
        grid = canvas[0] // image_size, canvas[1] // image_size
        shape = (1 + grid[0] * grid[1], side * side, WIDTH)
        features = rng.standard_normal(shape).astype(np.float32)
        (expected,) = theirs(family, [features], [size], torch.from_numpy(newline))
        rows, grids = core.pack_tiles(
            features, grid=grid, size=size, newline=newline, max_tiles=max_tiles
        )
        assert sum(r * c for r, c in grids) == len(rows) == len(expected), size
        at = core.tile_layout(side, grid=grid, size=size, max_tiles=max_tiles)
        smaller = at["out_rows"] != at["rows"]
        shrunk += smaller
        what = "shrunk tiles = transformers" if smaller else "packed tiles = transformers"
        tolerance.check(nmse(expected, rows), "cpu", "f32", what)
    assert (shrunk > 5) == (max_tiles > 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_overview_alone_is_theirs(family):
    import torch

    side = FAMILIES[family][0] // FAMILIES[family][1]
    features = np.random.default_rng(2).standard_normal((1, side * side, WIDTH), dtype=np.float32)
    newline = np.full(WIDTH, 7.0, np.float32)
    for line_end, ours in ((torch.from_numpy(newline), newline), (None, ())):
        (expected,) = theirs(family, [features], [(30, 40)], line_end)
        rows, _ = core.pack_tiles(features, grid=(0, 0), size=(30, 40), newline=ours)
        np.testing.assert_array_equal(rows, expected)
