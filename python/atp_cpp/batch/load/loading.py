"""Opens images in worker threads: in order, in bounded memory, each failure its own image's.

Knows files and pixels, nothing of models: what a model wants made of the pixels is a function that
is handed in.

* Items come out in the order they went in, at most `window` of them under way.
* The decoded sizes, read from the files' headers, share `max_bytes`. The oldest image always gets
  its share, however large, so nothing waits for ever and the excess is one image.
* A file is read once: hashed, then decoded. Pipes and devices are not opened.
* Items are drawn from their iterator in the caller's thread.
* Whatever an image causes, also in `prepare`, becomes the `error` of that image.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, overload

import numpy as np

from atp_cpp.batch.load.memory import Memory, Stopped
from atp_cpp.batch.load.opening import Loaded, Opener, own_pixels, size_of, told
from atp_cpp.batch.source.item import Item, Source
from atp_cpp.images.load import Pixels

__all__ = ["MAX_BYTES", "N_THREADS", "Loaded", "load_all"]

T = TypeVar("T")

N_THREADS = 2  # that open images, where the user says nothing
MAX_BYTES = 1 << 30  # of files and pixels under way
_PATIENCE = 1.0  # seconds that closing waits for threads that are amid an image


@overload
def load_all(
    items: Iterable[Item],
    prepare: None = None,
    *,
    n_threads: int,
    window: int,
    max_bytes: int = MAX_BYTES,
) -> Generator[Loaded[Pixels], None, None]: ...
@overload
def load_all(
    items: Iterable[Item],
    prepare: Callable[[Item, Pixels], T],
    *,
    n_threads: int,
    window: int,
    max_bytes: int = MAX_BYTES,
) -> Generator[Loaded[T], None, None]: ...
def load_all(
    items: Iterable[Item],
    prepare: Callable[[Item, Pixels], Any] | None = None,
    *,
    n_threads: int,
    window: int,
    max_bytes: int = MAX_BYTES,
) -> Generator[Loaded[Any], None, None]:
    """Opens all items.

    Close it (``contextlib.closing``) if you leave before its end: its threads end then.

    Args:
        items: what to open.
        prepare: called in a thread with each item and its pixels.
        n_threads: worker threads; 0 opens each image in the caller's thread when it is asked for.
        window: items under way at most, those that are ready included.
        max_bytes: what files and pixels under way may take together, if more than one is.
    """
    memory = Memory(max_bytes)
    opener: Opener[Any] = Opener(prepare or _as_they_are, memory)
    if n_threads < 1:
        for index, item in enumerate(items):
            memory.hand_on()
            yield opener.open(index, item, item.source)
        return
    crew: _Crew[Any] = _Crew(opener, memory, n_threads)
    try:
        yield from _in_order(items, crew, memory, max(1, window))
    finally:
        crew.close()


def _as_they_are(_: Item, pixels: Pixels) -> Pixels:
    return pixels


class _Task(Generic[T]):
    """One image on its way through a thread."""

    def __init__(self, index: int, item: Item) -> None:
        self.index, self.item = index, item
        self.source: Source = b""
        self.loaded: Loaded[T] = Loaded(item)
        self.done = threading.Event()


class _Crew(Generic[T]):
    """Threads that open what they are given, first come, first served."""

    def __init__(self, opener: Opener[T], memory: Memory, n_threads: int) -> None:
        self._opener = opener
        self._memory = memory
        self._tasks: SimpleQueue[_Task[T] | None] = SimpleQueue()
        self._n_given = 0
        # as daemons they cannot keep a program from ending, for instance over a file server's lag
        self._threads = [
            threading.Thread(target=self._work, name=f"atp-load-{i}", daemon=True)
            for i in range(n_threads)
        ]
        for thread in self._threads:
            thread.start()

    def give(self, item: Item) -> _Task[T]:
        """Has an item opened."""
        task: _Task[T] = _Task(self._n_given, item)
        self._n_given += 1
        try:
            task.source = own_pixels(item)
        except Exception as error:
            task.loaded.error = told(item.image, error)
            task.done.set()
            return task
        if isinstance(task.source, (bytes, np.ndarray)):  # in hand already
            self._memory.book(task.index, size_of(task.source))
        self._tasks.put(task)
        return task

    def close(self) -> None:
        """Ends the threads; what they have not begun is not begun any more."""
        self._memory.stop()
        for _ in self._threads:
            self._tasks.put(None)
        deadline = time.monotonic() + _PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None and not self._memory.is_stopped:
            try:
                task.loaded = self._opener.open(task.index, task.item, task.source)
            except Stopped:
                return
            except BaseException as error:  # somebody's sys.exit(), say
                task.loaded.error = told(task.item.image, error)
            task.done.set()
            del task  # and the pixels with it, while this thread waits for the next


def _in_order(
    items: Iterable[Item], crew: _Crew[T], memory: Memory, window: int
) -> Generator[Loaded[T], None, None]:
    source = iter(items)
    tasks: deque[_Task[T]] = deque()
    listing_failed: Exception | None = None
    more = True
    while more or tasks:
        while more and len(tasks) < window and not (tasks and memory.is_full):
            try:
                tasks.append(crew.give(next(source)))
            except StopIteration:
                more = False
            except Exception as error:  # raised once what came before it is handed on
                more, listing_failed = False, error
        if tasks:
            tasks[0].done.wait()
            memory.hand_on()
            yield tasks.popleft().loaded
    if listing_failed is not None:
        raise listing_failed
