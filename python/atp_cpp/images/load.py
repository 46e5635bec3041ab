"""Any picture a user may have -> uint8 [h, w, 3] RGB, or an ImageError that says what is wrong.

Knows Pillow and NumPy, nothing of models. Every way in ends in :func:`load_image`:

* EXIF orientation is applied; of an animation the first frame that is not empty is taken.
* Transparent pixels are laid over white, and a note says so.
* Palette, greyscale, CMYK, YCbCr, Lab and 1-bit images are converted by Pillow; greyscale of 16 and
  32 bits and floats by :mod:`atp_cpp.images.pixels`, which finds what is black and white.
* HEIC opens when ``pillow-heif`` is installed.
* Size is checked in the header, before a pixel is decoded.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from atp_cpp.errors import ImageError
from atp_cpp.images.file_kinds import what_it_is
from atp_cpp.images.pixels import is_deep_colour, seek_content, to_rgb
from atp_cpp.images.png_chunks import without_large_texts
from atp_cpp.storage.forked import renew_in_children

Pixels: TypeAlias = NDArray[np.uint8]
ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image "
    "| NDArray[np.uint8]"
)

MIN_SIDE = 2  # px; a 1x1 image holds nothing to see
MAX_PIXELS = 89_478_485  # Pillow's own line between photos and decompression bombs; 256 MiB as RGB
MAX_ASPECT = 200  # longer side / shorter side

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RUNS_A_PROGRAM = {"EPS", "WMF"}  # Pillow would start Ghostscript or the system's renderer

_EXPECTED = "expected an image (JPEG, PNG, WebP, GIF, TIFF, BMP …)"

_log = logging.getLogger(__name__)


def load_image(source: ImageSource, *, name: str = "") -> Pixels:
    """Opens one image.

    Args:
        source: path, encoded bytes (bytes, bytearray, memoryview, or a file open for reading), a
            Pillow image, or pixels as uint8 [h, w, 3] in RGB order.
        name: what messages call it; :func:`source_name` if not given.

    Returns:
        uint8 [h, w, 3], RGB, upright, C-contiguous.

    Raises:
        ImageError: in one line: which image, what was expected, what came, what to do.
    """
    name = name or source_name(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    if isinstance(source, Image.Image):
        check_size(name, source.width, source.height)
        return _decode(source, name, from_file=False)
    with opened_image(in_memory(source, name), name) as image:
        return _decode(image, name, from_file=True)


def is_open_file(source: object) -> bool:
    """Whether it can be read like a file, as BytesIO and open() can."""
    return callable(getattr(source, "read", None)) and not isinstance(source, Image.Image)


def in_memory(source: Any, name: str) -> Any:
    """The encoded bytes of what holds them in another form, a file's from its beginning.

    Raises:
        ImageError: a file that is closed, open for text or for writing, or cannot be read.
    """
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    if not is_open_file(source):
        return source
    try:
        if source.seekable():
            source.seek(0)
        data = source.read()
    except Exception as error:  # any object with a read() may come
        raise ImageError(f"{name}: cannot be read: {_reason(error)}") from error
    if not isinstance(data, bytes):
        raise ImageError(
            f"{name}: expected a file open for reading bytes, open(PATH, 'rb'); got "
            f"{type(data).__name__} from it"
        )
    return data


@contextmanager
def opened_image(source: str | os.PathLike[str] | bytes, name: str) -> Iterator[Image.Image]:
    """An image of a permitted size, of which nothing but the header is read yet; or ImageError."""
    with _opened(source, name) as stream, _identified(stream, name) as image:
        check_size(name, image.width, image.height)
        yield image


def source_name(source: ImageSource) -> str:
    """The name of an image in messages and rows: its path, or what kind of object it is."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    if isinstance(source, np.ndarray):
        return "<array>"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "")) or "<Pillow image>"
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if is_open_file(source):
        named = getattr(source, "name", "")
        return named if isinstance(named, str) and named else "<open file>"
    raise ImageError(
        f"{_EXPECTED} as a path, bytes, an open file, a Pillow image or uint8 [h, w, 3], "
        f"got {type(source).__name__}"
    )


def check_size(name: str, width: int, height: int) -> None:
    """Raises ImageError for sides and shapes that no vision encoder can use. Sizes in pixels."""
    size = f"{width}x{height}"
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{name}: expected sides of at least {MIN_SIDE} pixels, got {size}; "
            "there is nothing to see in it"
        )
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: expected at most {MAX_PIXELS / 1e6:.0f} megapixels, got {size} "
            f"({width * height / 1e6:.0f} megapixels); scale it down first"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(
            f"{name}: expected sides in a ratio of at most {MAX_ASPECT}:1, got {size}; "
            "cut it into pieces first"
        )


def _from_array(pixels: NDArray[Any], name: str) -> Pixels:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(
            f"{name}: expected uint8 pixels [h, w, 3] in RGB order, got "
            f"{pixels.dtype} {list(pixels.shape)}; scale to 0..255, then .astype(np.uint8)"
        )
    check_size(name, pixels.shape[1], pixels.shape[0])
    return np.ascontiguousarray(pixels)


@contextmanager
def _opened(source: str | os.PathLike[str] | bytes, name: str) -> Iterator[BinaryIO]:
    """A seekable stream of the file's bytes; nothing but the header is read yet."""
    if isinstance(source, bytes):
        if not source:
            raise ImageError(f"{name}: {_EXPECTED}, got 0 bytes")
        yield io.BytesIO(source)
        return
    with open_file(source, name, pipes=True) as stream:
        yield stream


def open_file(source: str | os.PathLike[str], name: str, *, pipes: bool) -> BinaryIO:
    """A file that is not empty, to be read; never a device, and a pipe only if `pipes`.

    Raises:
        ImageError: with `name` in it.
    """
    path, text = Path(source), os.fspath(source)
    if not text:
        raise ImageError(f"{_EXPECTED}, got an empty name")
    if text.startswith(("http://", "https://")):
        raise ImageError(
            f"{name}: expected a file, got a web address; allow it with --allow-http, or "
            "download it first"
        )
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(
                f"{name}: {_EXPECTED}, got a directory; name its files, for instance {name}/*.jpg"
            )
        if stat.S_ISFIFO(status.st_mode) and pipes:
            return io.BytesIO(path.read_bytes())  # `atp-cpp caption <(curl …)`
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(
                f"{name}: {_EXPECTED}, got a pipe, device or socket; name a regular file"
            )
        if status.st_size == 0:
            raise ImageError(
                f"{name}: {_EXPECTED}, got an empty file (0 bytes); copy or download it again"
            )
        return path.open("rb")
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file; check the path") from None
    except PermissionError:
        raise ImageError(
            f"{name}: no permission to read this file; chmod or chown it, or copy it"
        ) from None
    except (OSError, ValueError) as error:  # name too long, embedded NUL, I/O error
        raise ImageError(f"{name}: cannot be read: {_reason(error)}") from error


def _identified(stream: BinaryIO, name: str) -> Image.Image:
    """The image with its header read and no pixel decoded."""
    head = stream.read(512)
    stream.seek(0)
    register_heif()
    try:
        with _pillow_quiet:
            image = Image.open(without_large_texts(stream))
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: expected at most {MAX_PIXELS / 1e6:.0f} megapixels, got more: "
            f"{_reason(error)}; scale it down first"
        ) from error
    except UnidentifiedImageError:
        raise ImageError(f"{name}: {_EXPECTED}, {what_it_is(head)}") from None
    except Exception as error:  # Pillow's plugins raise almost anything on broken headers
        raise ImageError(
            f"{name}: the header is damaged: {_reason(error)}; save it again as PNG"
        ) from error
    if image.format in _RUNS_A_PROGRAM:
        raise ImageError(
            f"{name}: {_EXPECTED}, got a vector drawing ({image.format}); turn it into PNG first"
        )
    return image


def _decode(image: Image.Image, name: str, *, from_file: bool) -> Pixels:
    try:
        with _pillow_quiet:
            deep_colour = is_deep_colour(image)
            if from_file:
                seek_content(image, name)
            image.load()
            upright = _turned(image)
            shown = to_rgb(upright, name, deep_colour=deep_colour)
            return np.array(shown, dtype=np.uint8, order="C")
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(
            f"{name}: out of memory while decoding {image.width}x{image.height}"
        ) from error
    except Exception as error:  # Pillow's decoders raise almost anything on broken data
        raise ImageError(
            f"{name}: the image data is damaged or cut off: {_reason(error)}; "
            "copy or download it again"
        ) from error


def _turned(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception as error:  # a damaged EXIF block must not cost the picture
        _log.debug("EXIF data ignored: %s", error)
        return image
    return image if turn is None else _with_tags(image.transpose(turn), image)


def _with_tags(turned: Image.Image, image: Image.Image) -> Image.Image:
    """A turned image that still knows its file's format and tags."""
    turned.format = image.format
    if hasattr(image, "tag_v2"):
        cast(Any, turned).tag_v2 = cast(Any, image).tag_v2
    return turned


class _PillowQuiet:
    """Hides Pillow's warnings on odd metadata, and on sizes, which check_size judges.

    Python has one list of filters for all threads. So the first thread that enters changes the list
    and the last one that leaves restores it: an earlier restore would take it from the others.
    """

    def __init__(self) -> None:
        self.renew_locks()
        self._n_inside = 0
        self._filters = warnings.catch_warnings()
        renew_in_children(self)

    def renew_locks(self) -> None:
        """Makes a new lock in a forked child."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
            self._n_inside += 1

    def __exit__(self, *failure: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                self._filters.__exit__(None, None, None)


_pillow_quiet = _PillowQuiet()


def register_heif() -> None:
    """Lets Pillow open HEIC if pillow-heif is installed."""
    if "HEIF" in Image.OPEN:
        return
    try:
        pillow_heif = import_module("pillow_heif")
    except ImportError:
        return
    pillow_heif.register_heif_opener()


def _reason(error: BaseException) -> str:
    """One line out of an exception."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
