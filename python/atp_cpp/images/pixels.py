"""A decoded picture -> 8-bit RGB: greys of more than 8 bits, transparency, animations.

Knows Pillow and NumPy, nothing of files and models. A note tells the user about every choice that
the user may not expect.
"""

from __future__ import annotations

import logging
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_MAX_FRAMES = 100  # frames of an animation that are searched for one that is not empty
_BITS = (8, 10, 12, 14, 16)  # that 16-bit files hold
_SAMPLE_FORMAT, _UNSIGNED = 339, 1  # TIFF
_MIN_TAGS, _MAX_TAGS = (340, 280), (341, 281)  # TIFF: the least and the greatest value
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")

_log = logging.getLogger(__name__)


def seek_content(image: Image.Image, name: str) -> None:
    """Goes to the first frame of an animation that is not empty.

    A frame is empty if it has one colour only, or is transparent. If all frames are empty, goes to
    the first frame.
    """
    if not getattr(image, "is_animated", False) or image.format == "TIFF":  # TIFF: pages
        return
    n_frames = min(getattr(image, "n_frames", 1), _MAX_FRAMES)
    for frame in range(n_frames):
        image.seek(frame)
        image.load()
        if not _is_empty(image):
            if frame:
                _log.info(
                    "the first frame of an animation is empty, so a later one is taken "
                    "(first in %s: frame %d)",
                    *(name, frame + 1),
                )
            return
    image.seek(0)


def _is_empty(image: Image.Image) -> bool:
    seen = image
    if _has_alpha(image):
        seen = image.convert("RGBA")
        if cast("tuple[int, int]", seen.getchannel("A").getextrema())[1] == 0:
            return True
    elif image.mode == "P":
        seen = image.convert("RGB")
    ends = seen.getextrema()
    each = ends if isinstance(ends[0], tuple) else (ends,)
    return all(low == high for low, high in cast("tuple[tuple[int, int], ...]", each))


def is_deep_colour(image: Image.Image) -> bool:
    """Whether a colour image has 16 bits a channel, of which Pillow decodes the upper 8.

    To be asked before it is decoded.
    """
    return image.mode.startswith("RGB") and any(
        ";16" in str(tile) for tile in getattr(image, "tile", ())
    )


def to_rgb(image: Image.Image, name: str, *, deep_colour: bool = False) -> Image.Image:
    """A decoded image as it is shown, RGB.

    Args:
        image: of any mode.
        name: in notes.
        deep_colour: it had 16 bits a channel.
    """
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _deep_grey(image, name).convert("RGB")
    if _has_alpha(image):
        shown = _over_white(image, name)
    else:
        shown = image if image.mode == "RGB" else image.convert("RGB")
    return _brightened(shown, name) if deep_colour else shown


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in _ALPHA_MODES or "transparency" in image.info


def _over_white(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "La":  # Pillow goes from here to LA alone
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    low, high = cast("tuple[int, int]", rgba.getchannel("A").getextrema())
    if low == 255:
        return rgba.convert("RGB")
    if high == 0:
        rgb = rgba.convert("RGB")
        if not _is_empty(rgb):
            _log.info("a picture that is wholly transparent is shown opaque (first in %s)", name)
            return rgb
    _log.info("transparent pixels are shown over white (first in %s)", name)
    paper = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(paper, rgba).convert("RGB")


def _brightened(image: Image.Image, name: str) -> Image.Image:
    """A colour image of 16 bits that holds 12 or 14 of them is nearly black in its upper 8."""
    ends = cast("tuple[tuple[int, int], ...]", image.getextrema())
    most = max(high for _, high in ends)
    for bits in (12, 14):
        white = 2 ** (bits - 8) - 1
        if 0 < most <= white:
            _log.info("a 16-bit picture of %d-bit values is brightened (first in %s)", bits, name)
            return image.point(lambda v, white=white: v * 255 / white)
    return image


def _deep_grey(image: Image.Image, name: str) -> Image.Image:
    """Greyscale of 16 and 32 bits -> 8; Pillow itself would clip all above 255 to white."""
    raw = np.asarray(image)
    if image.mode == "I" and _tag(image, (_SAMPLE_FORMAT,)) in (None, _UNSIGNED):
        raw = raw.view(np.uint32) if image.format == "TIFF" else raw
    values = raw.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        _log.info("pixels that are no numbers are shown black (first in %s)", name)
        known = values[finite]
        high = float(known.max()) if known.size else 0.0
        values = np.nan_to_num(values, nan=0.0, posinf=high, neginf=0.0)
        values[np.isnan(raw.astype(np.float64))] = float(known.min()) if known.size else 0.0
    low, high = _range_of(image, values, name)
    scaled = (values - low) * (255.0 / (high - low))
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8), mode=None)


def _range_of(image: Image.Image, values: NDArray[np.float64], name: str) -> tuple[float, float]:
    """Which values are black and white: as the file's tags say, or as its data tell."""
    least, most = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    low, high = _tag(image, _MIN_TAGS), _tag(image, _MAX_TAGS)
    if high is not None and high > (low or 0.0) and most <= high and least >= (low or 0.0):
        return (low or 0.0), high
    if image.mode == "F":
        if least >= 0 and most <= 255:
            return 0.0, 1.0 if most <= 1 else 255.0
    elif least >= 0 and most <= 65535:
        bits = next(bits for bits in _BITS if most < 2**bits) if most else 16
        if bits < 16:
            _log.info(
                "a 16-bit picture of values up to %d is taken for one of %d bits (first in %s)",
                *(int(most), bits, name),
            )
        return 0.0, 2.0**bits - 1
    low = min(least, 0.0)
    _log.info(
        "values from %g to %g are shown from black to white (first in %s)", *(low, most, name)
    )
    return low, most if most > low else low + 1.0


def _tag(image: Image.Image, numbers: tuple[int, ...]) -> float | None:
    """The first of these TIFF tags that the file has."""
    tags: Any = getattr(image, "tag_v2", None) or {}
    for number in numbers:
        value = tags.get(number)
        if isinstance(value, tuple):
            value = value[0] if value else None
        if value is not None:
            try:
                return float(value)
            except (TypeError, ValueError, ZeroDivisionError):
                return None
    return None
