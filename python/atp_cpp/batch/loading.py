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

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from atp_cpp.batch.item import Item
from atp_cpp.images import Pixels

T = TypeVar("T")

MAX_BYTES = 1 << 30  # of files and pixels under way


@dataclass(slots=True)
class Loaded(Generic[T]):
    """One image, opened; or what is wrong with it.

    Attributes:
        item: what was to be opened.
        pixels: what `prepare` made of the pixels, or uint8 [h, w, 3] without one; None with error.
        sha256: of the file's bytes, in hex; of pixels that came as such, of "HxW:" and the pixels.
            "" if nothing could be read.
        t_load: ms to read, decode and prepare it; waiting for other images is not in it.
        error: one line, "" if all is well.
    """

    item: Item
    pixels: T | None = None
    sha256: str = ""
    t_load: float = 0.0
    error: str = ""


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
    prepare: Callable[[Pixels], T],
    *,
    n_threads: int,
    window: int,
    max_bytes: int = MAX_BYTES,
) -> Generator[Loaded[T], None, None]: ...
def load_all(
    items: Iterable[Item],
    prepare: Callable[[Pixels], Any] | None = None,
    *,
    n_threads: int,
    window: int,
    max_bytes: int = MAX_BYTES,
) -> Generator[Loaded[Any], None, None]:
    """Opens all items.

    Close it (``contextlib.closing``) if you leave before its end: its threads end then.

    Args:
        items: what to open.
        prepare: called in a thread with each image's pixels.
        n_threads: worker threads; 0 opens each image in the caller's thread when it is asked for.
        window: items under way at most, those that are ready included.
        max_bytes: what files and pixels under way may take together, if more than one is.
    """
    raise NotImplementedError
    yield
