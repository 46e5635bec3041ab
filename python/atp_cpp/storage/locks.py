"""Locks that are freed when their process ends, also after a kill."""

from __future__ import annotations

import errno
import importlib
import os
from typing import Any

__all__ = ["take_lock"]

fcntl: Any  # each of these modules exists on some systems only
msvcrt: Any
try:
    fcntl, msvcrt = importlib.import_module("fcntl"), None
except ImportError:
    fcntl, msvcrt = None, importlib.import_module("msvcrt")

# The byte that is locked on Windows, where other processes cannot read locked bytes.
_FAR = 2**31 - 2


def take_lock(descriptor: int, *, wait: bool = False) -> bool:
    """Locks an open file, or a folder where folders can be opened, for this process.

    Args:
        descriptor: descriptor of the open file; closing it frees the lock.
        wait: wait while another process has the lock.

    Returns:
        False if another process has the lock; True if this process has it, or if the file system
        has no locks.
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
