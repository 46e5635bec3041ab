"""Files that name images, line by line: lists of paths and JSON lines.

Lines are numbered from 1. Empty lines are left out. A carriage return before the line's end and a
UTF-8 byte order mark are dropped. "-" is stdin.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import reprlib
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

from atp_cpp.batch.source.item import Item
from atp_cpp.errors import AtpError

MAX_LINE = 256 << 20  # bytes; an image of up to 190 MB as a data URL
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its line end; or an error if the line is too long to be held."""

    number: int
    data: bytes
    error: str = ""


def is_stream(name: str) -> bool:
    """Whether a list can be read only once: stdin or a pipe."""
    return name == "-" or stat.S_ISFIFO(_status(name).st_mode)


def is_web_address(name: str) -> bool:
    """Whether a name is an address on the web."""
    return name.startswith(("http://", "https://"))


def check_readable(name: str) -> None:
    """Raises AtpError unless a list can be opened. Nothing is read from stdin and pipes."""
    if not is_stream(name):
        with _opened(name):
            pass


def lines_of(name: str) -> Iterator[Line]:
    """The lines of a list that are not empty.

    Raises:
        AtpError: the list cannot be read, or is not UTF-8.
    """
    shown = "stdin" if name == "-" else name
    with nullcontext(sys.stdin.buffer) if name == "-" else _opened(name) as stream:
        number = 0
        while True:
            try:
                data = stream.readline(MAX_LINE)
            except OSError as error:
                raise AtpError(f"{shown}: cannot be read: {error.strerror or error}") from error
            if not data:
                return
            number += 1
            if number == 1 and data.startswith(_UTF16):
                raise AtpError(f"{shown}: expected UTF-8 text, got UTF-16; save it as UTF-8")
            too_long = ""
            if len(data) == MAX_LINE and not data.endswith(b"\n"):
                while (rest := stream.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                    pass
                data = b""
                too_long = f"expected at most {MAX_LINE >> 20} MiB in a line; give the image's path"
            data = data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data
            data = data.removesuffix(b"\n").removesuffix(b"\r")
            if too_long or data.strip():
                yield Line(number, data, too_long)


def item_of_json(line: Line, *, where: str, folder: str, prompts: tuple[str, ...]) -> Item:
    """The item of a JSON line: {"image", "custom_id"?, "prompt"? or "prompts"?}.

    Other keys are ignored.

    Args:
        line: one JSON object.
        where: "file:number", the line's name in messages; also the id of a line without an id.
        folder: the folder that relative paths start from.
        prompts: the questions for a line that has none.

    Returns:
        The item; an item with an error if the line cannot be used.
    """
    try:
        if line.error:
            raise ValueError(line.error)
        entry = _object(line.data)
    except ValueError as error:
        return Item(where, where, b"", prompts, f"{where}: {error}")
    own_id, asked = "", prompts
    try:
        own_id = _custom_id(entry)
        asked = _prompts(entry) or prompts
        image = entry.get("image")
        if not isinstance(image, str) or not image:
            keys = reprlib.repr(list(entry))
            raise ValueError(f'expected the path of an image as "image", got the keys {keys}')
        if image.startswith("data:"):
            return Item(own_id or where, where, _of_data_url(image), asked)
    except ValueError as error:
        return Item(own_id or where, where, b"", asked, f"{where}: {error}")
    # an address on the web is refused when it is opened; that message says what to do
    path = image if is_web_address(image) else os.path.join(folder, image)
    return Item(own_id or image, path, path, asked)


def _object(data: bytes) -> dict[str, Any]:
    try:
        # bytes of a path that are not UTF-8 become the same bytes again when the file is opened
        entry = json.loads(data.decode("utf-8", errors="surrogateescape"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"expected a JSON object, got no JSON: {error.msg} at character {error.colno}"
        ) from None
    except RecursionError:
        raise ValueError("expected a JSON object, got one nested too deep") from None
    if not isinstance(entry, dict):
        raise ValueError(f'expected a JSON object with "image", got {type(entry).__name__}')
    return entry


def _custom_id(entry: dict[str, Any]) -> str:
    """The custom_id of the line as text; "" if the line has none."""
    value = entry.get("custom_id")
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise ValueError(f'expected text or a number as "custom_id", got {reprlib.repr(value)}')
    return str(value)


def _prompts(entry: dict[str, Any]) -> tuple[str, ...]:
    """The prompts of the line; () if the line has none."""
    one, several = entry.get("prompt"), entry.get("prompts")
    if one is not None and several is not None:
        raise ValueError('expected "prompt" or "prompts", got both')
    asked = [one] if one is not None else several
    if asked is None:
        return ()
    if not isinstance(asked, list) or not asked or not all(isinstance(p, str) for p in asked):
        raise ValueError(
            f'expected text as "prompt" or a list of it as "prompts", got {reprlib.repr(asked)}'
        )
    return tuple(asked)


def _of_data_url(url: str) -> bytes:
    """The decoded bytes of a data URL, "data:image/png;base64,…"."""
    head, comma, body = url.partition(",")
    if not comma:
        raise ValueError(f"expected data:image/…;base64,… as a data URL, got {reprlib.repr(url)}")
    if not head.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(unquote_to_bytes(body), validate=True)
    except binascii.Error as error:
        raise ValueError(f"the data URL is damaged: {error}") from None


def _status(name: str) -> os.stat_result:
    with _told(name):
        return os.stat(name)


def _opened(name: str) -> BinaryIO:
    if stat.S_ISDIR(_status(name).st_mode):
        raise AtpError(f"{name}: expected a list of images, got a folder; name it by itself")
    with _told(name):
        return open(name, "rb")


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turns an OSError into an AtpError of one line."""
    try:
        yield
    except FileNotFoundError:
        raise AtpError(f"{name}: no such file; check the path of the list") from None
    except PermissionError:
        raise AtpError(f"{name}: no permission to read this list") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AtpError(f"{name}: cannot be read: {reason}") from error
