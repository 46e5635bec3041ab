"""Opened images -> jobs: each prompt rendered and its image encoded, once for all its prompts.

What comes before the encoder, resizing above all, is done in the threads that open images
(``Encoder.prepare``). The encoder can run ahead in a thread of its own while the decoder works
(:class:`Ahead`); it takes turns with it where both want the same cores.
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
    """What a job is the answer to; the tag of its :class:`Job`.

    Attributes:
        number: of the job, from 0.
        item: the image.
        prompt: the question.
        sha256: see Loaded.
        stamp: see Loaded.
        t_load: ms to open the image, in the first of its rows; 0 in the others.
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
        picture: for the engine; None if none of its prompts needs it any more.
        n_bytes: what it takes, or took.
        text: the prompt that is prepared, as rendered.
        prepared: that prompt with the image; None: none is.
    """

    picture: Picture | None
    n_bytes: int
    text: str = ""
    prepared: PreparedPrompt | None = None


@dataclass(slots=True)
class _Seen:
    """An image between its prompts."""

    loaded: Loaded[Ready]
    n_prompts: int
    embd: Embd | None = None  # of an earlier prompt


@dataclass(slots=True)
class Encoder:
    """Makes jobs.

    Attributes:
        engine: whose ``encode`` is used.
        render: a prompt -> its text with one media marker.
        options: of ``Engine.start``, the same for all jobs.
        embeddings: where encoded images are kept between runs.
        encoder_id: what stands there for the vision encoder.
    """

    engine: Engine
    render: Callable[[str], str]
    options: Mapping[str, Any] = field(default_factory=dict)
    embeddings: EmbeddingCache | None = None
    encoder_id: str = ""

    def prepare(self, item: Item, picture: Picture) -> Ready:
        """The first prompt, up to the encoder's work; may be called from any thread.

        Tiles are of the encoder's size already, and what may be in the cache of embeddings needs
        no preparation. What fails here fails again in its turn, and is told there.
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
        """One call a job, to be called in this order."""
        number = 0
        for loaded in images:
            seen = _Seen(loaded, len(loaded.item.prompts))
            for k, prompt in enumerate(loaded.item.prompts):
                t_load = 0.0 if k else loaded.t_load
                asked = Asked(number, loaded.item, prompt, loaded.sha256, loaded.stamp, t_load)
                yield partial(self._job, seen, asked)
                number += 1

    def _job(self, seen: _Seen, asked: Asked) -> Job:
        """Never raises: what is wrong is in the job."""
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
        # not known, or what was kept is of another count
        sequence = self.engine.encode(text, [picture])
        if seen.n_prompts > 1 or self.embeddings is not None:
            seen.embd = sequence.embd
        if self.embeddings is not None and seen.embd is not None:
            self.embeddings.put(seen.loaded.sha256, self.encoder_id, seen.embd)
        return sequence


class Ahead(Generic[T]):
    """Calls tasks in order and gives what they return, as an iterator.

    Args:
        tasks: drawn in the caller's thread.
        depth: tasks that are drawn before they are asked for, and called in a thread; 0: each is
            called in the caller's thread when its result is asked for.
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
            except Exception as error:  # StopIteration among them
                self._ended = error
        if self._under_way:
            return self._under_way.popleft().result()
        assert self._ended is not None
        raise self._ended

    def ready(self) -> bool:
        """Whether the next result can be had without waiting for a task."""
        return not self._under_way or self._under_way[0].done()

    def close(self) -> None:
        """Ends the thread; tasks that have not begun are dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
