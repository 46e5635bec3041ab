"""Limits the memory of pictures under way: all share a number of bytes, the oldest comes first.

Knows no picture. Pictures are numbered in the order in which they are handed on. The picture that
is handed on next is the head; the head never waits for memory. So there is no deadlock, and the
limit is exceeded by one picture at most.
"""

from __future__ import annotations

import threading
import time


class Stopped(Exception):
    """The work was given up while someone waited for memory."""


class Memory:
    """The account of the bytes that pictures under way hold.

    Args:
        max_bytes: bytes that all pictures may hold together. The head may take more.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._shares: dict[int, int] = {}
        self._head = 0
        self._stopped = False
        self._changed = threading.Condition()

    def book(self, index: int, n_bytes: int) -> None:
        """Notes that a picture holds `n_bytes` now; never waits."""
        with self._changed:
            if index >= self._head:
                self._shares[index] = n_bytes
                self._changed.notify_all()

    def take(self, index: int, n_bytes: int) -> float:
        """Waits until a picture may hold `n_bytes` in total, and books these bytes.

        Returns:
            Seconds waited.

        Raises:
            Stopped: stop() was called.
        """
        started = time.perf_counter()

        def may_take() -> bool:
            others = sum(self._shares.values()) - self._shares.get(index, 0)
            fits = others + n_bytes <= self._max_bytes
            return self._stopped or index <= self._head or fits

        with self._changed:
            if not may_take():
                self._changed.wait_for(may_take)
            if self._stopped:
                raise Stopped
            if index >= self._head:
                self._shares[index] = n_bytes
        return time.perf_counter() - started

    def hand_on(self) -> None:
        """Drops the head's bytes from the account: the caller holds that picture now.

        The next picture becomes the head.
        """
        with self._changed:
            self._shares.pop(self._head, None)
            self._head += 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Makes every take(), waiting now or called later, raise Stopped."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def is_stopped(self) -> bool:
        """Whether stop() was called."""
        return self._stopped

    @property
    def is_full(self) -> bool:
        """Whether all bytes are taken."""
        with self._changed:
            return sum(self._shares.values()) >= self._max_bytes
