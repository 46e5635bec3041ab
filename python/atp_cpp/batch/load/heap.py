"""Gives memory that was freed back to the system.

The C library of Linux keeps the memory that a thread freed for the same thread. Four threads that
open large pictures in turn would hold the memory of four pictures, though three pictures are freed:
with pictures of 89 megapixels the process grew by 2.4 GB instead of 1.1 GB. When a large block is
freed, the C library also raises the size up to which it keeps freed blocks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

_M_MMAP_THRESHOLD = -3  # of malloc.h
_APART = 256 << 10  # bytes: most pictures are larger, most other blocks are smaller


@lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    """The function malloc_trim of the GNU C library; None where the C library is another one."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return lambda pad: int(trim(pad))


def large_blocks_apart() -> None:
    """From now on, blocks as large as pictures go back to the system as soon as they are freed.

    The setting holds for the whole process, so only a program should make it: ``atp-cpp caption``
    does. The function does nothing where the C library is not the GNU one.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _APART)


def give_back() -> None:
    """Gives free memory back to the system; does nothing without the GNU C library."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
