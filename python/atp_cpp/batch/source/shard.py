"""Divides a set of images into parts. The part of an image depends on the image's id alone.

So each image is in exactly one part: on every machine, in every order, and whatever other images
the set holds. The parts are nearly equal: their sizes differ by about `sqrt(n_images / n)`.
"""

from __future__ import annotations

import hashlib
import re

from atp_cpp.errors import AtpError

_FORM = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


def parse_shard(text: str) -> tuple[int, int]:
    """Reads a shard as a user writes it: "2/8" -> (2, 8), the second part of eight.

    Raises:
        AtpError: the text has another form, or the part does not exist.
    """
    match = _FORM.fullmatch(text.strip())
    if not match:
        raise AtpError(f"shard {text!r}: expected I/N, part I of N, for instance 1/4")
    shard = int(match[1]), int(match[2])
    check_shard(shard)
    return shard


def check_shard(shard: tuple[int, int]) -> None:
    """Raises AtpError unless 1 <= i <= n."""
    i, n = shard
    if not 1 <= i <= n:
        raise AtpError(
            f"shard {i}/{n}: expected a part from 1 to {n}; parts are counted from 1"
            if n > 0
            else f"shard {i}/{n}: expected at least one part, for instance 1/4"
        )


def shard_of(custom_id: str, n: int) -> int:
    """The part, 1 to `n`, that an image is in.

    The part is the first 8 bytes of the id's SHA-256, as a big-endian number, modulo `n`, plus 1.
    """
    # surrogates stand for bytes of a file name that are not UTF-8
    digest = hashlib.sha256(custom_id.encode("utf-8", errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % n + 1
