"""Opens images in worker threads: in order, in bounded memory; an error concerns one image only.

Knows files and pixels, nothing of models. The caller passes a function, `prepare`, that turns the
pixels into what a model needs.

* Items come out in the order they went in. At most `window` items are under way.
* All images under way share `max_bytes`; the decoded size of an image is read from its header. The
  oldest image always gets the memory it needs, however large the image is. So no image waits for
  ever, and the limit is exceeded by one image at most.
* A file is read once: hashed, then decoded. Pipes and devices are not opened.
* Items are drawn from their iterator in the caller's thread.
* Every exception that an image causes, also in `prepare`, becomes the `error` of that image.
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

    Close the generator (``contextlib.closing``) if you leave it early: then its threads end.

    Args:
        items: the images to open.
        prepare: called in a thread with each item and its pixels.
        n_threads: worker threads; 0 opens each image in the caller's thread when it is asked for.
        window: most items under way at once; items that are ready but not taken yet count.
        max_bytes: bytes that files and pixels under way may take together. One image alone may
            take more.
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
    """Threads that open items in the order in which the items were given."""

    def __init__(self, opener: Opener[T], memory: Memory, n_threads: int) -> None:
        self._opener = opener
        self._memory = memory
        self._tasks: SimpleQueue[_Task[T] | None] = SimpleQueue()
        self._n_given = 0
        # daemon threads: a thread that waits for a slow file server must not keep the program alive
        self._threads = [
            threading.Thread(target=self._work, name=f"atp-load-{i}", daemon=True)
            for i in range(n_threads)
        ]
        for thread in self._threads:
            thread.start()

    def give(self, item: Item) -> _Task[T]:
        """Hands an item to the threads, which open it."""
        task: _Task[T] = _Task(self._n_given, item)
        self._n_given += 1
        try:
            task.source = own_pixels(item)
        except Exception as error:
            task.loaded.error = told(item.image, error)
            task.done.set()
            return task
        if isinstance(task.source, (bytes, np.ndarray)):  # already in memory
            self._memory.book(task.index, size_of(task.source))
        self._tasks.put(task)
        return task

    def close(self) -> None:
        """Ends the threads; images that no thread has begun stay unopened."""
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
            except BaseException as error:  # also SystemExit, if `prepare` calls sys.exit()
                task.loaded.error = told(task.item.image, error)
            task.done.set()
            del task  # frees the pixels while this thread waits for the next task


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
            except Exception as error:  # raised after all earlier items were given
                more, listing_failed = False, error
        if tasks:
            tasks[0].done.wait()
            memory.hand_on()
            yield tasks.popleft().loaded
    if listing_failed is not None:
        raise listing_failed
