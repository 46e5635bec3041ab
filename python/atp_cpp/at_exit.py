"""The end of the program, while threads are still captioning.

Python does not wait for daemon threads: it ends them where they are. A thread that is ended inside
the engine takes the process down. So at exit the engine is first asked to stop, all calls leave the
engine, and the program waits for the threads that feed a stream.
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
_CALLBACK = 2.0  # s that a user's callback gets at exit; a callback may wait for ever

_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def wait_for(thread: threading.Thread) -> None:
    """Makes the program wait for `thread` at exit; it must end when the engine's calls end."""
    _threads.add(thread)


def _end() -> None:
    _core._end_calls(_PATIENCE, _CALLBACK)
    for thread in list(_threads):
        thread.join(_CALLBACK)


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_core._forget_calls)
