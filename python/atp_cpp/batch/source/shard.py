"""One part of several of a set of images: which part an image is in follows from its id alone.

So each image is in exactly one part, whatever the machine, the order or what else is in the set;
and parts are nearly equal: about `sqrt(n_images / n)` apart.
"""

from __future__ import annotations

import hashlib
import re

from atp_cpp.errors import AtpError

_FORM = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


def parse_shard(text: str) -> tuple[int, int]:
    """The pair that a user writes: (2, 8), the second part of eight, of "2/8".

    Raises:
        AtpError: not of this form, or a part that there is not.
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

    It is the first 8 bytes of the id's SHA-256, as a big-endian number, modulo `n`, plus 1.
    """
    # surrogates stand for bytes of a file name that are not UTF-8
    digest = hashlib.sha256(custom_id.encode("utf-8", errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % n + 1
