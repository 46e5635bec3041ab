"""Continuous batching: a caption starts as soon as there is room; all under way decode together.

In: jobs, in order. Out: each job with its result or error, in the order in which captions end.
Knows nothing of images, prompts and rows.

The next job is started if fewer than ``n_parallel`` captions are under way and the job fits; one
prefill runs after another. Otherwise every caption under way gets one more token. A caption that
ends frees its room at once. Jobs start in order: a job that does not fit waits, and all later jobs
wait too, so that no job waits for ever. An error of a job is the result of this job; the run goes
on.
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
        options: keyword arguments of ``Engine.start``: how tokens are drawn, and n_predict.
        tag: any object by which the caller finds the job again.
        error: an error from before the start; it is then the job's result.
    """

    sequence: Sequence | None
    options: Mapping[str, Any] = field(default_factory=dict)
    tag: Any = None
    error: AtpError | None = None


Ended: TypeAlias = "tuple[Job, Result | AtpError]"


def _outcome(result: Result) -> Result | AtpError:
    """The engine's result; an AtpError where the engine ended this caption with an error."""
    return StageError(result.error) if result.finish_reason == "error" else result


def as_ours(error: Exception) -> AtpError:
    """The error of a caption as an AtpError; any other error, such as MemoryError, is wrapped."""
    if isinstance(error, AtpError):
        return error
    _log.debug("in the engine", exc_info=error)
    return StageError(f"{type(error).__name__} in the engine: {error}")


def _always() -> bool:
    return True


class Schedule:
    """Runs jobs through an engine, several at once.

    Args:
        engine: an engine whose plan is set, with no caption under way.
        n_parallel: most captions at once, >= 1.
        kv_budget: bytes that all caches may take together.
    """

    def __init__(self, engine: Engine, *, n_parallel: int, kv_budget: int) -> None:
        self._engine = engine
        self._n_parallel = n_parallel
        self._room = Room(engine, n_parallel=n_parallel, budget=kv_budget)
        self._live: dict[int, Job] = {}  # slot -> job
        self._waiting: Job | None = None  # the next job, if it did not fit
        self._full = False  # whether the waiting job still cannot fit
        self._again: deque[Job] = deque()  # jobs lost in a step that failed; each is run alone
        self._alone = False  # whether the job under way is one of these
        self._stopped = False
        self._broken: Exception | None = None  # the exception of the iterator of jobs

    def stop(self) -> None:
        """Starts no further job; those under way end. May be called from a signal handler."""
        self._stopped = True

    def run(
        self, jobs: Iterator[Job], ready: Callable[[], bool] = _always
    ) -> Generator[Ended, None, None]:
        """Gives every job once, with its result or error, in the order of ending.

        Args:
            jobs: the jobs; the next job is drawn only when there is a place for it.
            ready: whether the next job can be drawn without a wait. It is asked only while captions
                are under way; they go on until the next job is ready.

        Raises:
            Exception: any exception of `jobs`, after the captions under way have ended.
            KeyboardInterrupt: Ctrl-C. After every end of the run the engine holds no caption.
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
        """The job to start now; None if captions under way need a step first, or no job is left."""
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
        """Starts a job. Returns the result if the job ended at once; None if it runs or waits."""
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
        """A step failed for all captions under way: runs each alone, to find which one fails."""
        lost = list(self._live.values())
        self._live.clear()
        if len(lost) == 1:
            yield lost[0], error
            return
        _log.warning("%d captions failed together and are made again one by one: %s",
                     len(lost), error)  # fmt: skip
        self._again.extend(lost)
