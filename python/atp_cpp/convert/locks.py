"""Locks that end with their process, however it ends."""

from __future__ import annotations

try:
    import fcntl
except ImportError:  # Windows: processes are not told apart there
    fcntl = None  # type: ignore[assignment]

__all__ = ["take_lock"]


def take_lock(descriptor: int, *, wait: bool = False) -> bool:
    """Locks an open file or folder for this process.

    Args:
        descriptor: of the open file; closing it frees the lock.
        wait: for another process that has it.

    Returns:
        False if another process has it; True if we do, or if there are no locks here.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True
