"""Pictures such as the demo model was trained on, drawn with Pillow from a number."""

import numpy as np
from PIL import Image, ImageDraw

COLORS = ("red", "green", "blue", "yellow", "teal", "gray", "black", "brown")
QUESTIONS = (
    "Describe the image.", "how many shapes are there?", "is there a red shape?",
    "what shape is in the top left?", "is the circle above the triangle?",
)  # fmt: skip


def drawn(number):
    """A picture of one to six shapes on a plain or noisy ground, and a question."""
    rng = np.random.default_rng([11, number])
    ground = rng.integers(170, 256, 3)
    pixels = ground + rng.integers(-30, 31, (336, 336, 3)) * (number % 3 == 0)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 7)):
        x, y, size = (int(v) for v in (*rng.integers(0, 260, 2), rng.integers(30, 120)))
        box, color = (x, y, x + size, y + size), COLORS[rng.integers(len(COLORS))]
        kind = rng.integers(3)
        if kind == 0:
            draw.ellipse(box, color)
        elif kind == 1:
            draw.rectangle(box, color)
        else:
            draw.polygon([(x, y + size), (x + size // 2, y), (x + size, y + size)], color)
    return image, QUESTIONS[number % len(QUESTIONS)]
