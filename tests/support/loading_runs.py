"""Numbered images through load_all."""

import io
import threading

from PIL import Image

from atp_cpp.batch.load.loading import load_all
from atp_cpp.batch.source.item import Item


def item(source, name="x", error=""):
    return Item(name, name, source, ("What?",), error)


def encoded(i, side=8):
    """A PNG whose every pixel is `i`, for i < 2^24."""
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (i >> 16, i >> 8 & 255, i & 255)).save(stream, "PNG")
    return stream.getvalue()


def number(pixels):
    """What `encoded` put there."""
    high, middle, low = (int(x) for x in pixels[0, 0])
    return high << 16 | middle << 8 | low


def numbered(n):
    return [item(encoded(i), name=str(i)) for i in range(n)]


def load(items, prepare=None, *, n_threads=2, window=4, **options):
    made = None if prepare is None else lambda _, pixels: prepare(pixels)
    return load_all(items, made, n_threads=n_threads, window=window, **options)


def n_workers():
    return sum(thread.name.startswith("atp-load") for thread in threading.enumerate())
