"""Pictures of many shapes, cut from a photo, for tests of image preparation."""

from pathlib import Path

import numpy as np
from PIL import Image

PHOTO = Path(__file__).parents[2] / "examples" / "coffee.jpg"

# height, width: squares, portraits, panoramas, odd numbers, just above and below towers' sizes
SHAPES = [
    (1, 1), (2, 2), (1, 7), (9, 1), (3, 2), (16, 16), (17, 15), (48, 48), (47, 49), (55, 57),
    (56, 56), (57, 56), (56, 112), (112, 55), (13, 200), (200, 13), (2, 300), (300, 2), (97, 131),
    (131, 97), (100, 299), (299, 101), (240, 320), (333, 250), (335, 337), (1, 120), (113, 113),
]  # fmt: skip


def picture(shape, seed=0):
    """uint8 [h, w, 3]: the photo squeezed into that shape, and noise, so that each pixel counts."""
    height, width = shape
    with Image.open(PHOTO) as photo:
        small = np.array(photo.convert("RGB").resize((width, height)), dtype=np.int16)
    noise = np.random.default_rng([seed, height, width]).integers(-40, 41, small.shape)
    return np.clip(small + noise, 0, 255).astype(np.uint8)
