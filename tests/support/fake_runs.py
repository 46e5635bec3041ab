"""What the fake engine is given in caption_many, and what it says to that."""

import numpy as np

from atp_cpp import SamplingConfig

DRAW = SamplingConfig(n_predict=50)


def picture(shade, side=8):
    return np.full((side, side, 3), shade, np.uint8)


def words(shade, prompt):
    """What the fake says about an image; fewer words for some prompts."""
    return f"{shade:.3f} USER: <__media__> {prompt} ASSISTANT:"
