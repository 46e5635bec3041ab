"""Pictures of the size of photographs for timing batches, the same on every machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PHOTO = Path(__file__).resolve().parents[1] / "examples" / "coffee.jpg"
SIZE = (1600, 1200)  # 1.9 megapixels
SIDE = 1280  # of the drawn ones, 1.6 megapixels
COLORS = ("red", "green", "blue", "yellow", "teal", "gray", "black", "brown")


def photo(number: int) -> Image.Image:
    """A part of the example photograph, turned, enlarged and with a camera's noise."""
    rng = np.random.default_rng([5, number])
    with Image.open(PHOTO) as opened:
        image = opened.convert("RGB")
    share = rng.uniform(0.5, 1.0)
    w, h = round(image.width * share), round(image.height * share)
    x, y = int(rng.integers(0, image.width - w + 1)), int(rng.integers(0, image.height - h + 1))
    part = image.crop((x, y, x + w, y + h)).resize(SIZE, Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    noisy = np.asarray(part, np.float32) * rng.uniform(0.7, 1.3)
    noisy += rng.normal(0, 4, noisy.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def drawn(number: int) -> Image.Image:
    """Shapes on a plain ground, as the demo model knows them."""
    rng = np.random.default_rng([6, number])
    image = Image.new("RGB", (SIDE, SIDE), tuple(int(v) for v in rng.integers(170, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 5)):
        size = int(rng.integers(SIDE // 8, SIDE // 3))
        x, y = (int(v) for v in rng.integers(0, SIDE - size, 2))
        box, color = (x, y, x + size, y + size), COLORS[rng.integers(len(COLORS))]
        kind = rng.integers(3)
        if kind == 0:
            draw.ellipse(box, color)
        elif kind == 1:
            draw.rectangle(box, color)
        else:
            draw.polygon([(x, y + size), (x + size // 2, y), (x + size, y + size)], color)
    return image


def write_pictures(
    folder: Path, count: int, *, kind: str = "photo", quality: int = 90
) -> list[Path]:
    """`count` JPEG files; those that are there already stay.

    Args:
        folder: made if it is missing.
        count: how many.
        kind: "photo" or "drawn".
        quality: of the JPEG files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    make = {"photo": photo, "drawn": drawn}[kind]
    paths = [folder / f"{kind}-{number:05d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            make(number).save(path, quality=quality)
    return paths
