"""Locks that end with their process, however it ends."""

from __future__ import annotations

import errno
import importlib
import os
from typing import Any

__all__ = ["take_lock"]

fcntl: Any  # each is there on some systems only
msvcrt: Any
try:
    fcntl, msvcrt = importlib.import_module("fcntl"), None
except ImportError:
    fcntl, msvcrt = None, importlib.import_module("msvcrt")

# The byte that is locked on Windows, where nobody else can read what is locked.
_FAR = 2**31 - 2


def take_lock(descriptor: int, *, wait: bool = False) -> bool:
    """Locks an open file, or a folder where folders can be opened, for this process.

    Args:
        descriptor: of the open file; closing it frees the lock.
        wait: for another process that has it.

    Returns:
        False if another process has it; True if we do, or if the file system has no locks.
    """
    if fcntl is None:
        return _take_on_windows(descriptor, wait)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _take_on_windows(descriptor: int, wait: bool) -> bool:
    place = os.lseek(descriptor, 0, os.SEEK_CUR)
    mode = msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK
    try:
        while True:
            os.lseek(descriptor, _FAR, os.SEEK_SET)
            try:
                msvcrt.locking(descriptor, mode, 1)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EDEADLK):
                    return True  # a file system without locks
                if wait:  # LK_LOCK itself gives up after ten tries, one a second
                    continue
                return False
            return True
    finally:
        os.lseek(descriptor, place, os.SEEK_SET)
