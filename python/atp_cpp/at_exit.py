"""The end of the program, while threads of ours or of the user's are still captioning.

Python does not wait for daemon threads: it ends them where they are, and one that is inside the
engine takes the process down with it. So at exit the engine is asked to stop first, all calls leave
it, and threads that feed a stream are waited for.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref

from atp_cpp import _core

__all__ = ["wait_for"]

_PATIENCE = (
    60.0  # s; a vision encoder's image, or a model that is being loaded, cannot be cut short
)
_CALLBACK = 2.0  # s, of a callback of the user's, which may wait for something that never comes

_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def wait_for(thread: threading.Thread) -> None:
    """Has a thread waited for at exit; it must end once the engine's calls do."""
    _threads.add(thread)


def _end() -> None:
    _core._end_calls(_PATIENCE, _CALLBACK)
    for thread in list(_threads):
        thread.join(_CALLBACK)


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_core._forget_calls)
