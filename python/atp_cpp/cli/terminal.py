"""Results go to stdout, everything else to stderr; handles streams that break."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

PROGRAM = "atp-cpp"

EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
# the exit code that a shell reports for a program that SIGPIPE ended; `… | head -1` hides it
EXIT_PIPE_CLOSED = 141

PROGRESS_EVERY = 60.0  # s between two lines of progress where stderr is no terminal

T = TypeVar("T")


class OutputError(Exception):
    """Results cannot be written, for instance to a full disk; a closed pipe is BrokenPipeError."""


class Bar:
    """The progress of a long run: items done, items done before, rate, time left, and a few words.

    Args:
        bar: the bar on a terminal.
        say: prints a line a minute where there is no terminal.
    """

    def __init__(self, bar: tqdm[Any], say: Callable[[str], None] | None = None) -> None:
        self._bar = bar
        self._say = say
        self._n_done = self._n_before = 0
        self._started = self._said = time.monotonic()

    def advance(self, words: str = "") -> None:
        """Counts one more item that is done."""
        if words:
            self._bar.set_postfix_str(words, refresh=False)
        self._bar.update()
        self._n_done += 1
        now = time.monotonic()
        if self._say is not None and now - self._said >= PROGRESS_EVERY:
            self._said = now
            self._say(self._line(words, now - self._started))

    def pass_over(self) -> None:
        """Counts one more item that an earlier run has done; the item does not change the rate."""
        self._n_before += 1
        if self._bar.disable:
            return
        self._bar.initial += 1
        self._bar.n += 1

    def _line(self, words: str, seconds: float) -> str:
        n, total = self._n_done + self._n_before, self._bar.total
        of_all = f" of {total:,}" if total else ""
        rate = f"{3600 * self._n_done / max(seconds, 1e-9):,.0f} an hour"
        return ", ".join(filter(None, (f"{n:,}{of_all} done", rate, words)))


class Output:
    """Results on stdout, each flushed; notes and errors on stderr, each one line.

    While a progress bar is on the screen, both are written above it.
    """

    def __init__(self) -> None:
        self._bar_shown = False
        for stream in (sys.stdout, sys.stderr):
            # a file name that is not valid UTF-8 must not end the run
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")

    def result(self, text: str) -> None:
        """Prints one result, with a line end."""
        with _named_failure():
            self._write(sys.stdout, text)

    def row(self, row: dict[str, Any]) -> None:
        """Prints one JSON row."""
        encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
        self.result(json.dumps(row, ensure_ascii=encoding != "utf8"))

    def piece(self, text: str) -> None:
        """Prints a piece of a result at once, without a line end."""
        with _named_failure():
            sys.stdout.write(text)
            sys.stdout.flush()

    def flush(self) -> None:
        """Writes everything out before the program reports success."""
        if sys.stdout is not None:
            with _named_failure():
                sys.stdout.flush()

    def note(self, text: str) -> None:
        """Prints a note for the user."""
        self._write(sys.stderr, f"{PROGRAM}: {one_line(text)}")

    def error(self, text: str) -> None:
        """Prints an error."""
        self._write(sys.stderr, f"{PROGRAM}: error: {one_line(text)}")

    @contextmanager
    def progress(
        self, items: Iterable[T], total: int | None, *, unit: str = "image"
    ) -> Iterator[Iterable[T]]:
        """The items; with a bar on stderr if that is a terminal and there is more than one item.

        A total of None means that the number of items is unknown.
        """
        if (total is not None and total < 2) or not is_terminal(sys.stderr):
            yield items
            return
        self._bar_shown = True
        bar = tqdm(items, total=total, file=sys.stderr, unit=unit, dynamic_ncols=True)
        try:
            yield bar
        finally:
            bar.close()
            self._bar_shown = False

    @contextmanager
    def bar(self, total: int | None, *, unit: str = "image") -> Iterator[Bar]:
        """A bar for work that calls Bar.advance; prints a line a minute without a terminal."""
        shown = is_terminal(sys.stderr)
        self._bar_shown = shown
        bar = tqdm(
            total=total, file=sys.stderr, unit=unit, dynamic_ncols=True, smoothing=0.1,
            disable=not shown,
        )  # fmt: skip
        try:
            yield Bar(bar, None if shown else self.note)
        finally:
            bar.close()
            self._bar_shown = False

    def _write(self, stream: TextIO | None, text: str) -> None:
        if stream is None:  # closed by the shell: `>&-`
            return
        if self._bar_shown:
            tqdm.write(text, file=stream)
        else:
            stream.write(text + "\n")
        stream.flush()


@contextmanager
def _named_failure() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.strerror or str(error)) from error


class NoteHandler(logging.Handler):
    """Prints the package's log records of INFO and WARNING as notes on stderr, each kind once."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.INFO)
        self._output = output
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the record unless one with the same message form was printed."""
        form = str(record.msg)
        if form not in self._seen:
            self._seen.add(form)
            self._output.note(f"note: {record.getMessage()}")


@contextmanager
def notes_on_stderr(output: Output) -> Iterator[None]:
    """While active, the package's log records are shown as notes."""
    logger = logging.getLogger("atp_cpp")
    handler = NoteHandler(output)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def is_terminal(stream: TextIO | None) -> bool:
    """Whether the stream is a terminal."""
    return stream is not None and stream.isatty()


def silence_stdout() -> None:
    """After a failed write: sends stdout to the null device, so the flush at exit is silent."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


def one_line(text: str) -> str:
    """Runs of white space as one space, control characters (in file names, say) as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
