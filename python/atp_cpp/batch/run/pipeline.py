"""Items -> rows: opened in threads, encoded, captioned several at once, put in order.

items -> :mod:`loading` -> :mod:`encoding` -> :mod:`schedule` -> rows. Each step draws from the step
before it only when a row is wanted. So no step runs far ahead, and memory stays flat.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, TypeAlias

from atp_cpp._core import Result, __version__
from atp_cpp.batch.load.loading import N_THREADS, load_all
from atp_cpp.batch.output.rows import Row, failed_row, good_row
from atp_cpp.batch.run.embeddings import EmbeddingCache
from atp_cpp.batch.run.encoding import Ahead, Asked, Encoder, Ready
from atp_cpp.batch.run.schedule import Ended, Schedule
from atp_cpp.batch.source.item import Item
from atp_cpp.caption import Caption
from atp_cpp.errors import AtpError
from atp_cpp.images.load import Pixels
from atp_cpp.images.prepare import prepare
from atp_cpp.images.views import as_tiles
from atp_cpp.options.plan import CutSpec, SamplingConfig
from atp_cpp.session import Session
from atp_cpp.storage.forked import renew_in_children

OnError: TypeAlias = Literal["record", "stop"]


_AHEAD = 2  # jobs that the encoder's thread makes ahead
_of_parents: list[Iterator[Row]] = []  # kept for ever: freeing a run waits for its threads
_HELD = 16  # rows that may wait for an earlier row, for each caption under way


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How a batch is run; see ``Captioner.caption_many``. Sizes in bytes."""

    plan: tuple[CutSpec, ...]
    sampling: SamplingConfig
    batch_size: int
    kv_budget: int
    ordered: bool = True
    on_error: OnError = "record"
    embeddings: EmbeddingCache | None = None
    n_load_threads: int = N_THREADS
    overlap: bool = False


class CaptionRun(Iterator[Row]):
    """The rows of ``Captioner.caption_many``, one by one.

    Close the run, or use it as a context manager, if you leave it before its end: then it gives up
    the captions under way. The same happens when Python frees the run.
    """

    def __init__(self, session: Session, items: Iterable[Item], options: BatchOptions) -> None:
        self._batch = _Batch(session, items, options)
        self._rows = self._batch.rows()
        self._of_parent = False
        renew_in_children(self)

    def renew_locks(self) -> None:
        """Called in a forked child: a run that has begun has its threads in the parent only."""
        if inspect.getgeneratorstate(self._rows) != inspect.GEN_CREATED:
            self._of_parent = True
            _of_parents.append(self._rows)

    def __next__(self) -> Row:
        if self._of_parent:
            raise AtpError(
                "this caption_many began before the process forked, and goes on in the parent; "
                "make a Captioner of its own in the child"
            )
        return next(self._rows)

    def __enter__(self) -> CaptionRun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives up the captions under way and ends the threads. Calling it again does nothing."""
        if not self._of_parent:
            self._rows.close()

    def stop(self) -> None:
        """Starts no further caption; those under way end, and their rows are given.

        May be called from a signal handler, and from another thread.
        """
        self._batch.stop()


class _Batch:
    """The work of a run. It holds no reference to its rows(), so dropping them ends the run."""

    def __init__(self, session: Session, items: Iterable[Item], options: BatchOptions) -> None:
        self._session, self._items, self._options = session, items, options
        self._schedule: Schedule | None = None
        self._stopped = False
        self._config_hash = ""

    def stop(self) -> None:
        self._stopped = True
        if self._schedule is not None:
            self._schedule.stop()

    def rows(self) -> Generator[Row, None, None]:
        options, session = self._options, self._session
        with session.open_batch(options.plan) as engine:
            self._config_hash = session.config_hash(plan=options.plan, sampling=options.sampling)
            encoder = Encoder(engine, session.render, options.sampling.engine_options())
            if options.embeddings is not None:
                encoder.embeddings, encoder.encoder_id = options.embeddings, encoder_id(session)
            self._schedule = schedule = Schedule(
                engine, n_parallel=options.batch_size, kv_budget=options.kv_budget
            )
            if self._stopped:
                return
            order = _InOrder(_HELD * options.batch_size if options.ordered else 0)
            n_threads = options.n_load_threads
            window = 2 * n_threads + 1
            prepare = partial(self._prepare, encoder)
            images = load_all(self._items, prepare, n_threads=n_threads, window=window)
            jobs = Ahead(encoder.tasks(images), _AHEAD if options.overlap else 0)
            ended = schedule.run(jobs, lambda: order.has_room() and jobs.ready())
            with closing(images), closing(jobs), closing(ended):
                yield from order.rows(map(self._row, ended))

    def _prepare(self, encoder: Encoder, item: Item, pixels: Pixels) -> Ready:
        """Pixels as the encoder takes them; called in the loading threads."""
        spec = self._session.image_spec
        picture = pixels if spec is None else as_tiles(prepare(pixels, spec), spec)
        return encoder.prepare(item, picture)

    def _row(self, ended: Ended) -> tuple[int, Row]:
        job, outcome = ended
        asked: Asked = job.tag
        if not isinstance(outcome, AtpError):
            return asked.number, self._good_row(asked, outcome)
        self._session.check_open()  # else every further row would say that the session is closed
        if self._options.on_error == "stop":
            self.stop()
        return asked.number, failed_row(
            asked.item.image,
            asked.prompt,
            str(outcome),
            self._session.files,
            self._options.sampling.seed,
            plan=self._options.plan,
            custom_id=asked.item.custom_id,
            sha256=asked.sha256,
            stamp=asked.stamp,
            t_load=asked.t_load,
            config_hash=self._config_hash,
        )

    def _good_row(self, asked: Asked, result: Result) -> Row:
        caption = Caption(
            text=result.text.strip(),
            finish_reason=result.finish_reason,
            report=result.report,
            plan=self._options.plan,
            t_load=asked.t_load,
        )
        return good_row(
            asked.item.image,
            asked.prompt,
            caption,
            self._session.files,
            self._options.sampling.seed,
            custom_id=asked.item.custom_id,
            sha256=asked.sha256,
            stamp=asked.stamp,
            parsed=self._parsed(caption),
            config_hash=self._config_hash,
        )

    def _parsed(self, caption: Caption) -> Any:
        """The answer as an object; None without a JSON schema, or if the answer was cut short."""
        if not self._options.sampling.json_schema:
            return None
        try:
            value = json.loads(caption.text)
        except ValueError:
            return None
        # "12" may be the beginning of 123; any other value that can be read is complete
        cut_short = caption.finish_reason != "stop" and isinstance(value, (int, float))
        return None if cut_short else value


class _InOrder:
    """Holds rows back until all rows before them are there.

    Args:
        limit: when this many rows are held back, no further caption is begun until the missing row
            comes. 0: no row is held back, rows are given as they come.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[int, Row] = {}
        self._next = 0

    def has_room(self) -> bool:
        """Whether more rows may be begun."""
        return not self._limit or len(self._held) < self._limit

    def rows(self, numbered: Iterable[tuple[int, Row]]) -> Iterator[Row]:
        """The rows, each numbered from 0 without gaps, in order."""
        for number, row in numbered:
            if not self._limit:
                yield row
                continue
            self._held[number] = row
            while self._next in self._held:
                yield self._held.pop(self._next)
                self._next += 1


def encoder_id(session: Session) -> str:
    """A text that changes with everything that can change the embeddings of an image."""
    facts = [
        __version__,  # this package, or the libmtmd in it, prepares images
        session.mmproj_fingerprint(),
        None if session.image_spec is None else session.image_spec.metadata(),
        list(session.info.devices),
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
