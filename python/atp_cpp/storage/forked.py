"""New locks for a forked child: a lock that a thread of the parent held would never be free."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["renew_in_children"]


class _HasLocks(Protocol):
    def renew_locks(self) -> None: ...


_owners: weakref.WeakSet[_HasLocks] = weakref.WeakSet()


def renew_in_children(owner: _HasLocks) -> None:
    """Calls owner.renew_locks() in every child that is forked from now on, before its own code."""
    _owners.add(owner)


def _renew() -> None:
    for owner in list(_owners):
        owner.renew_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
