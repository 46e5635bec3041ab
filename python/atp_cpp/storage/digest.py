"""SHA-256 of files and of bytes, in hex."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

__all__ = ["file_sha256", "sha256_hex"]

_BLOCK = 1 << 20  # bytes of a file in memory at once


def file_sha256(path: Path) -> str:
    """The checksum of a file, which is read in pieces.

    Returns:
        64 hex digits.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_hex(*parts: Any) -> str:
    """The checksum of bytes, or of arrays, one after another; 64 hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
