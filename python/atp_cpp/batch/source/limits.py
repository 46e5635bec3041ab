"""How many bytes a file of one image may have, on a disk, in a tar or on the web."""

from __future__ import annotations

MAX_FILE_BYTES = 1 << 30  # 89 megapixels of 64 bits, the largest image that is opened, are 716 MB


def too_large(name: str, n_bytes: int, limit: int) -> str:
    """The message on a file, or a member of a tar, of more than `limit` bytes."""
    return (
        f"{name}: expected at most {limit // 2**20} MiB, got {n_bytes // 2**20} MiB; "
        "this is no single photo, or save it as JPEG"
    )
