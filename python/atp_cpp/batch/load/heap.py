"""Gives memory that was freed back to the system.

The C library of Linux keeps what a thread freed for that thread, so that four threads in turn
would hold four large pictures, of which three are freed: for pictures of 89 megapixels, one at a
time through four threads, the process grew by 2.4 GB instead of 1.1. It also learns from each
large block that is freed to keep the next of that size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

_M_MMAP_THRESHOLD = -3  # of malloc.h
_APART = 256 << 10  # bytes: pictures are larger, most else is smaller


@lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    """The function of the GNU C library; None where there is another one."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return lambda pad: int(trim(pad))


def large_blocks_apart() -> None:
    """From now on blocks as large as pictures go back as soon as they are freed.

    A setting of the whole process, so it is the program's to make: ``atp-cpp caption`` does. Does
    nothing where there is another C library.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _APART)


def give_back() -> None:
    """Gives back what is free; does nothing where that cannot be asked for."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
