"""Ways to damage bytes, a GGUF file, and the dictionary of a chat request."""

from __future__ import annotations

import copy
import random
import zlib
from collections.abc import Callable
from typing import Any

from .gguf_bytes import EDGES, STRUCTURED, join, parse

HEAD = 4096  # bytes in which most damage is done
WORDS = (b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff")


def flip_bits(rng: random.Random, content: bytes) -> bytes:
    """One to sixteen bits, mostly near the beginning."""
    out = bytearray(content)
    limit = len(out) if rng.random() < 0.4 else min(len(out), HEAD)
    for _ in range(rng.randint(1, 16)):
        out[rng.randrange(limit)] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut_short(rng: random.Random, content: bytes) -> bytes:
    """The beginning of it."""
    limit = len(content) if rng.random() < 0.5 else min(len(content), HEAD)
    return content[: rng.randrange(limit)]


def splice(rng: random.Random, content: bytes) -> bytes:
    """A piece lost, doubled, or brought from another place."""
    limit = len(content) if rng.random() < 0.4 else min(len(content), HEAD)
    begin = rng.randrange(limit)
    end = min(len(content), begin + rng.choice((1, 2, 4, 8, 64, 500)))
    other = rng.randrange(len(content))
    piece = rng.choice((b"", content[begin:end] * 2, content[other : other + 40]))
    return content[:begin] + piece + content[end:]


def lie_of_length(rng: random.Random, content: bytes) -> bytes:
    """Two, four or eight bytes become a number at an edge, in either byte order."""
    n = rng.choice((2, 4, 8))
    at = rng.randrange(max(1, min(len(content), HEAD) - n))
    order: Any = rng.choice(("little", "big"))
    number = (rng.choice(EDGES) % 2 ** (8 * n)).to_bytes(n, order)
    return content[:at] + number + content[at + n :]


def write_words(rng: random.Random, content: bytes) -> bytes:
    """A run of one word in the head."""
    at = rng.randrange(min(len(content), HEAD))
    word = rng.choice(WORDS) * rng.randint(1, 8)
    return content[:at] + word + content[at + len(word) :]


BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    flip_bits,
    cut_short,
    splice,
    lie_of_length,
    write_words,
)


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    """One to three of the above."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(BYTES)(rng, content) or b"\0"
    return content


def with_checksums(png: bytes) -> bytes:
    """The checksums of a damaged PNG made good, so that its decoder goes on behind them."""
    out, at = bytearray(png), 8
    while at + 12 <= len(out):
        n = int.from_bytes(out[at : at + 4], "big")
        if at + 12 + n > len(out):
            break
        check = zlib.crc32(out[at + 4 : at + 8 + n])
        out[at + 8 + n : at + 12 + n] = check.to_bytes(4, "big")
        at += 12 + n
    return bytes(out)


def damaged_image(rng: random.Random, content: bytes) -> bytes:
    """Damaged bytes, of a PNG mostly with checksums that fit them."""
    out = damaged_bytes(rng, content)
    return with_checksums(out) if content[1:4] == b"PNG" and rng.random() < 0.7 else out


def damaged_gguf(rng: random.Random, content: bytes) -> bytes:
    """Mostly pieces changed so that the file can still be read; else its bytes damaged."""
    if rng.random() < 0.25:
        return damaged_bytes(rng, content)
    pieces = parse(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if pieces.keys and pieces.tensors:
            rng.choice(STRUCTURED)(rng, pieces)
    return join(pieces)


def any_value(rng: random.Random, depth: int = 0) -> Any:
    """Something that JSON, or Python, could hold."""
    leaf: tuple[Any, ...] = (None, True, False, 0, 1, -1, 2**31, 2**64, -(2**63), 0.5, 1e308)
    leaf += (float("nan"), float("inf"), "", "a", "\0", "\ud800", "x" * 5000, "<image>", "é" * 99)
    leaf += (b"", b"\xff", "<__media__>", "data:image/png;base64,", "data:,", "file:///dev/zero")
    leaf += ("file://", "http://127.0.0.1:9/x.png", "/dev/zero", "/", "{{", "user", "text")
    if depth < 3 and rng.random() < 0.35:
        n = rng.randrange(4)
        if rng.random() < 0.5:
            return [any_value(rng, depth + 1) for _ in range(n)]
        return {
            rng.choice(("type", "text", "url", "a", 1, None)): any_value(rng, depth + 1)
            for _ in range(n)
        }
    return rng.choice(leaf)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside."""
    found = []
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(inside):
        found.append((value, key))
        if isinstance(item, (dict, list)):
            found += places(item)
    return found


def damaged_request(rng: random.Random, request: dict[str, Any]) -> dict[str, Any]:
    """Values lost, replaced, doubled or made from others; names at the top stay."""
    out = copy.deepcopy(request)
    for _ in range(rng.choice((1, 1, 2, 3))):
        found = places(out)
        if not found:
            break
        holder, key = rng.choice(found)
        what = rng.randrange(4)
        if what == 0 and holder is not out:
            del holder[key]
        elif what == 1 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif what == 2:
            other, at = rng.choice(found)
            holder[key] = copy.deepcopy(other[at])
        else:
            holder[key] = any_value(rng)
    return out
