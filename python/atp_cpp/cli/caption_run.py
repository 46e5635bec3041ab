"""The captioning run of the command line: many images in, rows out, and what a person sees of it.

Rows go where the user wants them as they come; Ctrl-C ends the captions under way first. Nothing of
the run is held in memory but what says that a row is done.
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
    n_whole: int = 0  # image tokens, summed over the good rows: all of them
    n_mean: float = 0.0  # likewise: mean over layers
    started: float = field(default_factory=time.monotonic)

    def add(self, row: Row) -> None:
        """One more row."""
        if row.status == ERROR:
            self.n_failed += 1
            return
        self.n_good += 1
        self.n_whole += row.n_image_tokens
        self.n_mean += row.tokens_mean

    @property
    def tokens(self) -> str:
        """Means over the images, "140 of 576 tokens"; nothing before the first."""
        if not self.n_good:
            return ""
        return f"{self.n_mean / self.n_good:.0f} of {self.n_whole / self.n_good:.0f} tokens"

    def words(self) -> str:
        """For a bar."""
        failed = f"{self.n_failed} failed" if self.n_failed else ""
        return ", ".join(filter(None, (self.tokens, failed)))

    def summary(self) -> str:
        """For the end."""
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
        """One row; a failure is told on stderr, too."""
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
        start: makes the run over the items that it is given.
        items: all of them, done or not.
        sink: where rows go; None: only to the printer, and nothing is passed over.
        printer: what is shown of them.
        total: items, if that is known.
        how_to_resume: said after an interruption.

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
    """The items; the bar hears of those that the sink passed over."""
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
    """Until the block ends, the first Ctrl-C (or SIGTERM) calls `stop`; a second one interrupts.

    Yields:
        An event that is set after the first.
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
