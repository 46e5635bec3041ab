"""Continuous batching: a caption starts as soon as there is room; all under way decode together.

In: jobs, in order. Out: each job with its result or error, in the order of ending. Knows nothing of
images, prompts and rows.

While fewer captions than ``n_parallel`` are under way and the next job fits, it is started (one
prefill after another); else all of them get one token more. A caption that ends makes room at once.
Jobs start in order: one that does not fit now waits, and those behind it wait with it, so that none
starves. An error of one job is that job's result; the run goes on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from atp_cpp._core import Engine, Result, Sequence
from atp_cpp.batch.run.room import Room
from atp_cpp.errors import AtpError, ModelError, StageError

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Job:
    """One caption to make.

    Attributes:
        sequence: the encoded prompt; None if there is an error already.
        options: how to draw: the keyword arguments of ``Engine.start``, n_predict among them.
        tag: whatever the caller wants to know it by.
        error: known bad before it starts; then this is its result.
    """

    sequence: Sequence | None
    options: Mapping[str, Any] = field(default_factory=dict)
    tag: Any = None
    error: AtpError | None = None


Ended: TypeAlias = "tuple[Job, Result | AtpError]"


def _outcome(result: Result) -> Result | AtpError:
    """An engine's result, or the error that ended this caption alone."""
    return StageError(result.error) if result.finish_reason == "error" else result


def as_ours(error: Exception) -> AtpError:
    """What a caption failed of; short memory, say, is no AtpError."""
    if isinstance(error, AtpError):
        return error
    _log.debug("in the engine", exc_info=error)
    return StageError(f"{type(error).__name__} in the engine: {error}")


def _always() -> bool:
    return True


class Schedule:
    """Runs jobs through an engine, several at once.

    Args:
        engine: its plan is set, and nothing is under way.
        n_parallel: at most this many captions at once, >= 1.
        kv_budget: bytes that all caches may take together.
    """

    def __init__(self, engine: Engine, *, n_parallel: int, kv_budget: int) -> None:
        self._engine = engine
        self._n_parallel = n_parallel
        self._room = Room(engine, n_parallel=n_parallel, budget=kv_budget)
        self._live: dict[int, Job] = {}  # slot -> job
        self._waiting: Job | None = None  # the next job, when it did not fit
        self._full = False  # it did not, and cannot yet
        self._again: deque[Job] = deque()  # lost in a step that failed; each is run alone
        self._alone = False  # the one under way is such a job
        self._stopped = False
        self._broken: Exception | None = None  # what the jobs' iterator raised

    def stop(self) -> None:
        """Starts no further job; those under way end. May be called from a signal handler."""
        self._stopped = True

    def run(
        self, jobs: Iterator[Job], ready: Callable[[], bool] = _always
    ) -> Generator[Ended, None, None]:
        """Gives every job once, with its result or error, in the order of ending.

        Args:
            jobs: pulled one by one, and only when there is a place for the next.
            ready: whether the next job can be had without a wait. Asked only while captions are
                under way: these go on until it is.

        Raises:
            Exception: what `jobs` raises, after the captions under way have ended.
            KeyboardInterrupt: Ctrl-C. However the run ends, the engine holds no caption then.
        """
        try:
            while True:
                job = self._next(jobs, ready)
                if job is not None:
                    outcome = self._start(job)
                    if outcome is not None:
                        yield job, outcome
                elif self._live:
                    yield from self._step()
                elif self._broken is not None:
                    raise self._broken
                else:
                    return
        finally:
            with suppress(ModelError):  # the engine was closed meanwhile
                self._engine.reset()

    def _next(self, jobs: Iterator[Job], ready: Callable[[], bool]) -> Job | None:
        """The job to start now; None: first those under way need a step, or there is none left."""
        if self._live and (
            self._full or self._alone or self._room.better or len(self._live) >= self._n_parallel
        ):
            return None
        if self._room.better:
            self._room.divide()
        self._alone = bool(self._again)
        if self._again:
            return self._again.popleft()
        if self._stopped:
            return None
        if self._waiting is not None:
            job, self._waiting, self._full = self._waiting, None, False
            return job
        if self._broken is not None or (self._live and not ready()):
            return None
        try:
            return next(jobs, None)
        except Exception as error:
            self._broken = error
            return None

    def _start(self, job: Job) -> Result | AtpError | None:
        """Its result if it has one already; None: it is under way, or waits for room."""
        if job.error is not None:
            return job.error
        assert job.sequence is not None
        try:
            self._room.open(job.sequence, job.options["n_predict"])
            started = self._engine.start(job.sequence, **job.options)
            while started.slot < 0 and started.result is None:
                if self._live:
                    self._waiting, self._full = job, True
                    self._room.refuse(started.n_cells)
                    return None
                self._room.grow(started.n_cells)
                started = self._engine.start(job.sequence, **job.options)
        except Exception as error:
            return as_ours(error)
        self._room.learn(started.n_cells)
        if started.result is not None:
            return _outcome(started.result)
        self._live[started.slot] = job
        return None

    def _step(self) -> Iterator[Ended]:
        try:
            ended = self._engine.step()
        except Exception as error:
            yield from self._failed(as_ours(error))
            return
        if ended and self._full:
            self._full = not self._room.may_fit()
        for slot, result in ended:
            yield self._live.pop(slot), _outcome(result)

    def _failed(self, error: AtpError) -> Iterator[Ended]:
        """A step failed, with all captions under way; each shows alone whether it was its fault."""
        lost = list(self._live.values())
        self._live.clear()
        if len(lost) == 1:
            yield lost[0], error
            return
        _log.warning("%d captions failed together and are made again one by one: %s",
                     len(lost), error)  # fmt: skip
        self._again.extend(lost)
