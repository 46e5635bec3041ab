"""Opened images -> jobs: each prompt rendered and its image encoded, once for all its prompts.

The work before the encoder, mostly resizing, is done in the threads that open images
(``Encoder.prepare``). The encoder can run ahead in its own thread while the decoder works
(:class:`Ahead`). Where encoder and decoder use the same cores, they take turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from atp_cpp._core import Engine, PreparedPrompt, Sequence, Tiles
from atp_cpp.batch.load.loading import Loaded
from atp_cpp.batch.run.embeddings import EmbeddingCache
from atp_cpp.batch.run.schedule import Job, as_ours
from atp_cpp.batch.source.item import Item
from atp_cpp.errors import AtpError, ImageError
from atp_cpp.images.load import Pixels

T = TypeVar("T")
Picture: TypeAlias = "Pixels | Tiles"  # as the engine takes it
Embd: TypeAlias = "NDArray[np.float32]"  # [n_image_tokens, n_embd_inp]


@dataclass(frozen=True, slots=True)
class Asked:
    """The image and the prompt that a job answers; the tag of the :class:`Job`.

    Attributes:
        number: number of the job, counted from 0.
        item: the image.
        prompt: the question.
        sha256: SHA-256 of the image's bytes, in hex; "" if nothing could be read.
        stamp: "BYTES:NANOSECONDS", size and time of the image's file; "" if the image is no file.
        t_load: ms to open the image, in the first row of the image; 0 in the other rows.
    """

    number: int
    item: Item
    prompt: str
    sha256: str
    stamp: str
    t_load: float


@dataclass(frozen=True, slots=True)
class Ready:
    """An image on its way to the encoder.

    Attributes:
        picture: the picture for the engine; None if no prompt needs the picture any more.
        n_bytes: bytes that the picture takes, or took.
        text: the rendered text of the prompt in `prepared`; "" without one.
        prepared: the first prompt with the image, prepared for the encoder; None: not prepared.
    """

    picture: Picture | None
    n_bytes: int
    text: str = ""
    prepared: PreparedPrompt | None = None


@dataclass(slots=True)
class _Seen:
    """An image of which some prompts are answered and some are not."""

    loaded: Loaded[Ready]
    n_prompts: int
    embd: Embd | None = None  # the embeddings, kept from an earlier prompt


@dataclass(slots=True)
class Encoder:
    """Makes jobs.

    Attributes:
        engine: the engine that encodes images.
        render: a function: prompt -> text of the prompt with one media marker.
        options: keyword arguments of ``Engine.start``, the same for all jobs.
        embeddings: the cache that keeps encoded images between runs.
        encoder_id: the name of the vision encoder in that cache.
    """

    engine: Engine
    render: Callable[[str], str]
    options: Mapping[str, Any] = field(default_factory=dict)
    embeddings: EmbeddingCache | None = None
    encoder_id: str = ""

    def prepare(self, item: Item, picture: Picture) -> Ready:
        """Prepares the first prompt up to the encoder's work; may be called from any thread.

        Tiles already have the encoder's size. With a cache of embeddings nothing is prepared,
        because the image may be in the cache. A failure here is not reported: the same step fails
        again when the job is made, and the job then holds the error.
        """
        n_bytes = picture.tiles.nbytes if isinstance(picture, Tiles) else picture.nbytes
        if not isinstance(picture, Tiles) and self.embeddings is None:
            with suppress(AtpError):
                text = self.render(item.prompts[0])
                prepared = self.engine.prepare(text, [picture])
                kept = picture if len(item.prompts) > 1 else None
                return Ready(kept, n_bytes, text, prepared)
        return Ready(picture, n_bytes)

    def tasks(self, images: Iterable[Loaded[Ready]]) -> Iterator[Callable[[], Job]]:
        """Functions that make one job each, to be called in this order."""
        number = 0
        for loaded in images:
            seen = _Seen(loaded, len(loaded.item.prompts))
            for k, prompt in enumerate(loaded.item.prompts):
                t_load = 0.0 if k else loaded.t_load
                asked = Asked(number, loaded.item, prompt, loaded.sha256, loaded.stamp, t_load)
                yield partial(self._job, seen, asked)
                number += 1

    def _job(self, seen: _Seen, asked: Asked) -> Job:
        """Makes a job. Never raises: an error is written into the job."""
        try:
            if seen.loaded.error:
                raise ImageError(seen.loaded.error)
            text = self.render(asked.prompt)
            return Job(self._encode(seen, text), self.options, asked)
        except Exception as error:
            return Job(None, self.options, asked, as_ours(error))

    def _encode(self, seen: _Seen, text: str) -> Sequence:
        ready = seen.loaded.pixels
        assert ready is not None
        if ready.prepared is not None and text == ready.text and seen.embd is None:
            sequence = self.engine.encode_prepared(ready.prepared)
            seen.embd = sequence.embd if seen.n_prompts > 1 else None
            return sequence
        picture = ready.picture
        assert picture is not None
        embd, kept = seen.embd, None
        if embd is None and self.embeddings is not None:
            embd = kept = self.embeddings.get(seen.loaded.sha256, self.encoder_id)
        if embd is not None:
            try:
                sequence = self.engine.encode(text, [picture], embd=embd)
                seen.embd = embd
                return sequence
            except ImageError:
                if kept is None:
                    raise
        # no embeddings are known, or the cached ones have another number of image tokens
        sequence = self.engine.encode(text, [picture])
        if seen.n_prompts > 1 or self.embeddings is not None:
            seen.embd = sequence.embd
        if self.embeddings is not None and seen.embd is not None:
            self.embeddings.put(seen.loaded.sha256, self.encoder_id, seen.embd)
        return sequence


class Ahead(Generic[T]):
    """Calls tasks in order and gives what they return, as an iterator.

    Args:
        tasks: the tasks; they are drawn from the iterator in the caller's thread.
        depth: number of tasks that a thread calls before their results are asked for. 0: each task
            is called in the caller's thread when its result is asked for.
    """

    def __init__(self, tasks: Iterator[Callable[[], T]], depth: int) -> None:
        self._tasks, self._depth = tasks, depth
        self._pool = ThreadPoolExecutor(1, "atp-encode") if depth else None
        self._under_way: deque[Future[T]] = deque()
        self._ended: Exception | None = None  # what ended the tasks

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._pool is None:
            return next(self._tasks)()
        while self._ended is None and len(self._under_way) < self._depth:
            try:
                self._under_way.append(self._pool.submit(next(self._tasks)))
            except Exception as error:  # also StopIteration
                self._ended = error
        if self._under_way:
            return self._under_way.popleft().result()
        assert self._ended is not None
        raise self._ended

    def ready(self) -> bool:
        """Whether the next result is there, so that nothing has to wait for a task."""
        return not self._under_way or self._under_way[0].done()

    def close(self) -> None:
        """Ends the thread; tasks that have not begun are dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
