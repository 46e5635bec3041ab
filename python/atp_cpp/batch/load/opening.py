"""Opens one image: reads its bytes once, hashes, decodes and prepares them; or says what is wrong.

Runs in any thread. An error of one image, also a lack of memory, is written into the result of this
image and has no effect on other images.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from atp_cpp.batch.load.heap import give_back
from atp_cpp.batch.load.memory import Memory, Stopped
from atp_cpp.batch.source.item import Item, Source
from atp_cpp.batch.source.limits import MAX_FILE_BYTES, too_large
from atp_cpp.errors import AtpError, ImageError
from atp_cpp.images.load import Pixels, load_image, open_file, opened_image
from atp_cpp.storage.digest import sha256_hex

T = TypeVar("T")

DECODING = 20  # peak bytes per pixel while decoding; measured 10 (RGB) to 20 (RGBA, laid on white)
_LARGE = 128 << 20  # bytes; after an image that took more, free memory goes back to the system
_MAX_ERROR = 1000  # characters


@dataclass(slots=True)
class Loaded(Generic[T]):
    """One opened image, or the reason why it could not be opened.

    Attributes:
        item: the item that was to be opened.
        pixels: what `prepare` returned; uint8 [h, w, 3] without a `prepare`; None after an error.
        sha256: SHA-256 of the file's bytes, in hex. For an image given as pixels, SHA-256 of the
            text "HxW:" and the pixels. "" if nothing could be read.
        stamp: "BYTES:NANOSECONDS", the size and time of the file; "" if the image is no file.
        t_load: ms to read, decode and prepare the image, without the wait for other images.
        error: what went wrong, in one line; "" if nothing did.
    """

    item: Item
    pixels: T | None = None
    sha256: str = ""
    stamp: str = ""
    t_load: float = 0.0
    error: str = ""


class Opener(Generic[T]):
    """Opens items, several at a time if several threads call.

    Args:
        prepare: called with each item and its pixels; its result goes into Loaded.pixels.
        memory: the account where the bytes that an image takes are booked.
    """

    def __init__(self, prepare: Callable[[Item, Pixels], T], memory: Memory) -> None:
        self._prepare = prepare
        self._memory = memory

    def open(self, index: int, item: Item, source: Source) -> Loaded[T]:
        """Opens one item; the result holds the error if the image cannot be opened.

        Args:
            index: number of the item, for the account of memory.
            item: the item; an item that already has an error is not opened.
            source: the item's source, or a copy of the source.

        Raises:
            Stopped: the memory was stopped.
            KeyboardInterrupt: Ctrl-C, in the main thread.
        """
        loaded: Loaded[T] = Loaded(item, error=item.error)
        if item.error:
            return loaded
        started = time.perf_counter()
        waited = [0.0]
        try:
            self._open_into(loaded, source, index, waited)
        except (Stopped, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # plugins written in Rust panic with a BaseException
            loaded.error = told(item.image, error)
            self._memory.book(index, 0)
        loaded.t_load = 1000 * (time.perf_counter() - started - sum(waited))
        return loaded

    def _open_into(
        self, loaded: Loaded[T], source: Source, index: int, waited: list[float]
    ) -> None:
        """Fills in hash and pixels as they come."""
        name = loaded.item.image
        if isinstance(source, (Image.Image, np.ndarray)):
            pixels = load_image(source, name=name)
            height, width = pixels.shape[:2]
            loaded.sha256 = sha256_hex(f"{height}x{width}:".encode(), pixels)
            loaded.pixels = self._prepare(loaded.item, pixels)
        else:
            waited.append(self._memory.take(index, size_of(source)))
            loaded.stamp = stamp_of(source)  # read before the bytes, so a later change shows
            data = bytes_of(source, name)
            loaded.sha256 = sha256_hex(data)
            loaded.pixels, n_bytes = self._decoded(data, loaded.item, index, waited)
            if n_bytes > _LARGE:
                give_back()
        self._memory.book(index, _held_by(loaded.pixels))

    def _decoded(self, data: bytes, item: Item, index: int, waited: list[float]) -> tuple[T, int]:
        """The result of `prepare`, and the most bytes that decoding took."""
        name = item.image
        with opened_image(data, name) as image:
            n_bytes = len(data) + DECODING * image.width * image.height
            waited.append(self._memory.take(index, n_bytes))
            return self._prepare(item, load_image(image, name=name)), n_bytes


def own_pixels(item: Item) -> Source:
    """The source of an item; an array is copied, because its owner may change the array later.

    Raises:
        ImageError: pixels that load_image refuses.
    """
    source = item.source
    if item.error or not isinstance(source, (Image.Image, np.ndarray)):
        return source
    pixels = load_image(source, name=item.image)
    return pixels.copy() if isinstance(source, np.ndarray) else pixels


def bytes_of(source: Source, name: str) -> bytes:
    """The encoded bytes of a file, of bytes, or of what a callable returns.

    Raises:
        ImageError: a file that cannot be read or is too large, a pipe, a device, something else.
    """
    data: object = source() if callable(source) else source
    if isinstance(data, (str, os.PathLike)) and not callable(source):
        return _read(data, name)
    if not isinstance(data, bytes):
        raise ImageError(f"{name}: expected the bytes of an image, got {type(data).__name__}")
    return data


def _read(path: str | os.PathLike[str], name: str) -> bytes:
    with open_file(path, name, pipes=False) as stream:
        n_bytes = os.fstat(stream.fileno()).st_size
        if n_bytes > MAX_FILE_BYTES:
            raise ImageError(too_large(name, n_bytes, MAX_FILE_BYTES))
        try:
            return stream.read(n_bytes)
        except OSError as error:
            raise ImageError(f"{name}: cannot be read: {error.strerror or error}") from error


def stamp_of(source: Source) -> str:
    """Size and time of a file, "SIZE:TIME"; "" if the source is no file or the file is missing.

    A member of a tar has the size and time that the tar states.
    """
    if isinstance(source, (str, os.PathLike)):
        try:
            status = os.stat(source)
        except (OSError, ValueError):
            return ""
        return f"{status.st_size}:{status.st_mtime_ns}"
    return str(getattr(source, "stamp", ""))


def hash_of(source: Source, name: str) -> str:
    """SHA-256, in hex, of a file, of a tar's member or of bytes; "" for any other source."""
    if isinstance(source, (Image.Image, np.ndarray)):
        return ""
    try:
        return sha256_hex(bytes_of(source, name))
    except ImageError:
        return ""


def size_of(source: Source) -> int:
    """Size in bytes of an image's source, known before it is read; 0 where the size is unknown."""
    if isinstance(source, bytes):
        return len(source)
    if isinstance(source, np.ndarray):
        return source.nbytes
    if isinstance(source, (str, os.PathLike)):
        try:
            return min(os.stat(source).st_size, MAX_FILE_BYTES)
        except (OSError, ValueError):
            return 0
    return int(getattr(source, "n_bytes", 0))


def told(name: str, error: BaseException) -> str:
    """The text of an exception for a row: one line that contains the image's name."""
    if isinstance(error, AtpError):
        text = str(error)
    elif isinstance(error, MemoryError):
        text = f"{name}: out of memory while it was opened; scale it down, or use fewer threads"
    else:
        text = f"{name}: cannot be opened: {type(error).__name__}: {error}"
    return " ".join(text.split())[:_MAX_ERROR]


def _held_by(result: object) -> int:
    """Bytes of an array, or the `n_bytes` of an object that has this attribute."""
    return int(getattr(result, "n_bytes", getattr(result, "nbytes", 0)))
