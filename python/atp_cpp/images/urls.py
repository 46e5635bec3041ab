"""What a message of a chat names as an image: a data URL, a file, or an address on the web.

The web is asked only where the caller allows it, with a limit of bytes, seconds and redirects.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import time
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from atp_cpp.errors import AtpError, ImageError
from atp_cpp.images.load import Pixels, load_image

__all__ = ["MAX_BYTES", "MAX_REDIRECTS", "STEP_S", "TIMEOUT_S", "WebImage", "load_url"]

MAX_BYTES = 64 << 20  # of an encoded image, in a data URL or from the web
MAX_REDIRECTS = 5
STEP_S = 10.0  # to connect, and to wait for an answer or for more of it
TIMEOUT_S = 30.0  # for the content

_WEB = ("http", "https")
_SMALLEST = 64  # characters; the smallest PNG of 2 x 2 pixels has more
_LONGEST_PATH = 4096
_BASE64 = re.compile(r"[A-Za-z0-9+/=_\s-]*")
# of JPEG, PNG, GIF, WebP, BMP with its size, TIFF
_BASE64_HEADS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk0", "Qk1", "SUkqA", "TU0AK")
_BLANK = re.compile(r"\s+")


def load_url(url: str, *, allow_http: bool = False) -> Pixels:
    """Opens the image that a message names.

    Args:
        url: ``data:image/…;base64,…`` or its base64 alone, ``file:///…``, a path, or, if allowed,
            http(s).
        allow_http: whether the web may be asked.

    Returns:
        uint8 [h, w, 3], as load_image returns it.

    Raises:
        ImageError: it names no image that can be opened; in one line.
        AtpError: a web address where none is allowed, or without httpx.
    """
    scheme = url.partition(":")[0].lower() if ":" in url else ""
    if scheme == "data":
        return _named(_shortened(url), _from_data(url))
    if scheme in _WEB:
        if not allow_http:
            raise AtpError(
                f"{_shortened(url)}: web addresses are not allowed; pass allow_http=True, or "
                "download the image and give its path"
            )
        return _named(_shortened(url), _download(url))
    if scheme == "file":
        return load_image(_path_of(url))
    if "://" in url:
        raise ImageError(
            f"{_shortened(url)}: expected a data URL, a file or http(s), got the scheme {scheme}"
        )
    if _is_base64(url):
        return _named(_shortened(url), _decoded(url, _shortened(url)))
    if len(url) > _LONGEST_PATH:
        raise ImageError(
            f"{_shortened(url)}: expected a data URL, a path or http(s), got {len(url)} characters"
        )
    return load_image(url)


def _is_base64(text: str) -> bool:
    """Whether these are an image's bytes without the head of a data URL, and no path."""
    bare = text.strip()
    if _BASE64.fullmatch(bare[:_LONGEST_PATH]) is None:
        return False
    if bare.startswith(_BASE64_HEADS) and len(bare) >= _SMALLEST:
        return not os.path.lexists(text)
    return len(bare) > _LONGEST_PATH  # no file has a name of that length


def _named(name: str, content: bytes) -> Pixels:
    """The image; errors name where it came from."""
    try:
        return load_image(content)
    except ImageError as error:
        raise ImageError(str(error).replace("<bytes>", name, 1)) from error


def _shortened(url: str) -> str:
    """For messages: no signatures, and not a megabyte of base64."""
    if url[:5].lower() == "data:":
        return f"{url[:40]}…" if len(url) > 40 else url
    if _is_base64(url):
        return f"<base64 {url.lstrip()[:16]}…>"
    shown = url.partition("?")[0]
    return f"{shown[:200]}…" if len(shown) > 200 else shown


def _from_data(url: str) -> bytes:
    head, comma, data = url.partition(",")
    name = _shortened(url)
    if not comma or not head.lower().endswith(";base64"):
        raise ImageError(f"{name}: expected data:image/TYPE;base64,… with the bytes in base64")
    return _decoded(unquote(data), name)


def _decoded(data: str, name: str) -> bytes:
    if len(data) > MAX_BYTES * 4 // 3 + 4:
        raise ImageError(
            f"{name}: expected at most {MAX_BYTES >> 20} MiB, got {len(data) * 3 // 4 / 2**20:.0f}"
        )
    try:
        return base64.b64decode(_BLANK.sub("", data), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(
            f"{name}: its base64 is damaged or cut off ({error}); encode the image again"
        ) from error


def _path_of(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ImageError(
            f"{_shortened(url)}: a file on another machine ({parts.netloc}); write file:///PATH "
            "with three slashes"
        )
    return url2pathname(parts.path)


def _http() -> Any:
    """httpx, or httpx2: one of the two comes with huggingface-hub."""
    for name in ("httpx", "httpx2"):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise AtpError('web addresses need the httpx package; pip install "atp_cpp[http]"')


@dataclass(frozen=True, slots=True)
class WebImage:
    """The bytes of an image on the web, fetched when it is called.

    Attributes:
        url: address of the image.
        stamp: the same text for all addresses: a row of an address counts as done, even if the
            image at the address has changed.
    """

    url: str
    stamp: str = "web"

    def __call__(self) -> bytes:
        """Fetches the image; raises ImageError or AtpError with one line."""
        return _download(self.url)


def _download(url: str) -> bytes:
    httpx = _http()
    name = _shortened(url)
    client = httpx.Client(follow_redirects=True, max_redirects=MAX_REDIRECTS, timeout=STEP_S)
    try:
        with client, client.stream("GET", url, headers={"user-agent": "atp_cpp"}) as response:
            if response.status_code != 200:
                raise ImageError(f"{name}: the server answered {response.status_code}")
            return _body(response, name)
    except httpx.TooManyRedirects as error:
        raise ImageError(f"{name}: more than {MAX_REDIRECTS} redirects") from error
    except httpx.TimeoutException as error:
        raise ImageError(f"{name}: no answer within {STEP_S:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name}: cannot be downloaded: {reason}") from error


def _body(response: Any, name: str) -> bytes:
    """The content, if it is not too much and does not take too long."""
    deadline = time.monotonic() + TIMEOUT_S
    content = bytearray()
    for piece in response.iter_bytes():
        content += piece
        if len(content) > MAX_BYTES:
            raise ImageError(f"{name}: expected at most {MAX_BYTES >> 20} MiB, got more")
        if time.monotonic() > deadline:
            raise ImageError(f"{name}: no whole answer within {TIMEOUT_S:g} s")
    return bytes(content)
