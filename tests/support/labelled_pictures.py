"""Pictures whose right caption is known: one shape in one colour, drawn from a number."""

import numpy as np
from PIL import Image, ImageDraw

COLORS = {
    "red": (230, 30, 30), "green": (30, 150, 40), "blue": (30, 40, 220), "yellow": (240, 220, 30),
    "teal": (0, 128, 128), "gray": (128, 128, 128), "black": (0, 0, 0), "brown": (140, 70, 20),
}  # fmt: skip
SHAPES = ("circle", "rectangle", "triangle")


def labelled(number):
    """(picture of 336 x 336, "a red circle")."""
    rng = np.random.default_rng([17, number])
    color, shape = list(COLORS)[rng.integers(len(COLORS))], SHAPES[rng.integers(len(SHAPES))]
    image = Image.new("RGB", (336, 336), tuple(int(v) for v in rng.integers(225, 256, 3)))
    draw = ImageDraw.Draw(image)
    size = int(rng.integers(110, 190))
    x, y = (int(v) for v in rng.integers(10, 326 - size, 2))
    box = (x, y, x + size, y + size)
    if shape == "circle":
        draw.ellipse(box, COLORS[color])
    elif shape == "rectangle":
        draw.rectangle((x, y, x + size, y + int(0.7 * size)), COLORS[color])
    else:
        draw.polygon([(x, y + size), (x + size // 2, y), (x + size, y + size)], COLORS[color])
    return image, f"a {color} {shape}"
