"""The captioning run of the command line: many images in, rows out, and messages for a person.

Each row is written as soon as it comes. After Ctrl-C, the captions under way end first. Only the
keys of the rows that are done are held in memory.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from atp_cpp.batch.output.rows import ERROR, Row
from atp_cpp.batch.output.sink import Sink
from atp_cpp.batch.run.pipeline import CaptionRun
from atp_cpp.batch.source.item import Item
from atp_cpp.cli.terminal import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_SOME_FAILED,
    Bar,
    Output,
    one_line,
)


@dataclass
class Tally:
    """What a run has done so far."""

    n_good: int = 0
    n_failed: int = 0
    n_whole: int = 0  # image tokens before any cut, summed over the good rows
    n_mean: float = 0.0  # live image tokens, mean over layers, summed over the good rows
    started: float = field(default_factory=time.monotonic)

    def add(self, row: Row) -> None:
        """Counts one more row."""
        if row.status == ERROR:
            self.n_failed += 1
            return
        self.n_good += 1
        self.n_whole += row.n_image_tokens
        self.n_mean += row.tokens_mean

    @property
    def tokens(self) -> str:
        """Means over the images, "140 of 576 tokens"; "" before the first image."""
        if not self.n_good:
            return ""
        return f"{self.n_mean / self.n_good:.0f} of {self.n_whole / self.n_good:.0f} tokens"

    def words(self) -> str:
        """The words beside a progress bar."""
        failed = f"{self.n_failed} failed" if self.n_failed else ""
        return ", ".join(filter(None, (self.tokens, failed)))

    def summary(self) -> str:
        """The words at the end of the run."""
        hours = (time.monotonic() - self.started) / 3600
        words = _count(self.n_good, "caption")
        if self.n_good:
            per_hour = self.n_good / max(hours, 1e-9)
            words += f", {per_hour:,.0f} an hour, {self.tokens} (mean over layers)"
        return words + (f"; {self.n_failed} failed" if self.n_failed else "")


@dataclass
class Printer:
    """Rows on standard output, as text or as JSON, or nowhere."""

    output: Output
    json: bool = False
    text: bool = True

    def show(self, row: Row) -> None:
        """Prints one row; prints a failure on stderr, too."""
        if row.status == ERROR:
            named = row.error if row.image in row.error else f"{row.image}: {row.error}"
            self.output.error(named)
        if self.json:
            self.output.row(row.as_dict())
        elif self.text and row.status != ERROR:
            self.output.result(f"{one_line(row.image)}: {' '.join(row.caption.split())}")


def run_captions(
    start: Callable[[Iterator[Item]], CaptionRun],
    items: Iterator[Item],
    sink: Sink | None,
    printer: Printer,
    *,
    total: int | None,
    how_to_resume: str,
) -> int:
    """Captions all items that are still to do.

    Args:
        start: a function: items -> the run over these items.
        items: all items, done or not.
        sink: where rows are written. None: rows go to the printer only, and no item is passed over.
        printer: prints the rows.
        total: number of items, if it is known.
        how_to_resume: advice that is printed after an interruption.

    Returns:
        The exit code.

    Raises:
        WriteError: rows cannot be written any more.
    """
    output, tally = printer.output, Tally()
    with output.bar(total) as bar:
        pending = items if sink is None else sink.pending(_watched(items, sink, bar))
        with start(pending) as run, _ending_first(run.stop, output) as asked:
            try:
                for row in run:
                    for recorded in [row] if sink is None else sink.put(row):
                        tally.add(recorded)
                        printer.show(recorded)
                    bar.advance(tally.words())
            except KeyboardInterrupt:
                asked.set()
            finally:
                for recorded in [] if sink is None else sink.close():
                    tally.add(recorded)
    return _finish(printer, tally, sink, asked.is_set(), how_to_resume)


def _watched(items: Iterator[Item], sink: Sink, bar: Bar) -> Iterator[Item]:
    """The items; tells the bar about items that the sink passed over."""
    n_passed = 0
    for item in items:
        yield item
        while n_passed < sink.n_skipped + sink.n_with_text + sink.n_repeated + sink.n_conflicts:
            bar.pass_over()
            n_passed += 1


def _finish(
    printer: Printer, tally: Tally, sink: Sink | None, interrupted: bool, how_to_resume: str
) -> int:
    output, n_rows = printer.output, tally.n_good + tally.n_failed
    if sink is not None:
        passed_over = (
            (sink.n_skipped, "done before" + _of_them_failed(sink)),
            (sink.n_with_text, "left as they are, having a text (--existing overwrite)"),
            (sink.n_replaced, "captioned anew, another picture having their name"),
            (sink.n_repeated, "named twice"),
            (sink.n_conflicts, "left out, their custom_id being that of another image"),
        )
        output.note("; ".join([tally.summary(), *(f"{n:,} {why}" for n, why in passed_over if n)]))
    elif interrupted:
        output.note(f"interrupted; {_count(tally.n_good, 'caption')} complete")
    elif tally.n_failed:
        output.note(f"{tally.n_failed} of {_count(n_rows, 'caption')} failed")
    if interrupted:
        output.note(how_to_resume)
        return EXIT_INTERRUPTED
    some_failed = tally.n_failed > 0 or (
        sink is not None and sink.n_conflicts + sink.n_skipped_failed > 0
    )
    return EXIT_SOME_FAILED if some_failed else EXIT_OK


def _of_them_failed(sink: Sink) -> str:
    if not sink.n_skipped_failed:
        return ""
    return f", {sink.n_skipped_failed:,} of them failed (--retry-failed captions them again)"


@contextmanager
def _ending_first(stop: Callable[[], None], output: Output) -> Iterator[threading.Event]:
    """Until the block ends, the first Ctrl-C (or SIGTERM) calls `stop`; the second one interrupts.

    Yields:
        An event that is set after the first signal.
    """
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        stop()
        output.note("ending the captions under way; Ctrl-C again gives them up")

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
