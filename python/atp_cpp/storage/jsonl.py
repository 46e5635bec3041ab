"""A file of JSON lines: appended to, never rewritten, whole after any end of its process.

A row is one write of one line to a descriptor in append mode, so ``kill -9`` leaves at most a torn
last line, which the next run cuts off. What is there already is read back on opening. Knows nothing
of what the rows say: a `RowFormat` tells which lines are rows.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from atp_cpp.errors import AtpError, WriteError
from atp_cpp.storage.locks import take_lock

__all__ = ["JsonlFile", "Line", "RowFormat", "begins_like", "lines_of", "read_back"]

SYNC_EVERY = 5.0  # seconds; a power cut costs at most the rows of this time
_MAX_LINE = 1 << 26  # bytes; a longer one is no row, and is met in pieces
_FLAGS = os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file of rows.

    Attributes:
        number: from 1.
        start: bytes before it.
        raw: with its end, if it has one.
        value: what its JSON says; None if it is none.
    """

    number: int
    start: int
    raw: bytes
    value: Any


@dataclass(frozen=True, slots=True)
class RowFormat:
    """What a module says of its rows.

    Attributes:
        head: how each line begins; tells a torn line of ours from somebody else's file.
        take: takes in the JSON of a line, in the order of the file; False if it is no row.
        foreign: the error that refuses a file, made of its path and of the number of the line
            that is no row.
        option: of the command line that names the file, "--out".
        strict: a line in the middle that is no row refuses the file. Otherwise such lines stay
            where they are, and are noted.
        sharing: what the user is told to do when another process has the file; may be empty.
    """

    head: bytes
    take: Callable[[Any], bool]
    foreign: Callable[[Path, int], AtpError]
    option: str
    strict: bool = False
    sharing: str = ""


class JsonlFile:
    """A context manager over a file of rows; entering opens, locks, repairs and reads it.

    A pipe or a device (/dev/stdout) is written to and nothing else. For one thread at a time.

    Args:
        path: the file; its folder is made when missing.
        form: which lines are rows, and who takes them in.
        resume: go on with a file that holds rows; otherwise such a file is refused.

    Raises:
        AtpError: on entering: a folder, a file that is not ours or cannot be written, or one that
            another process writes.
    """

    def __init__(
        self, path: str | os.PathLike[str], form: RowFormat, *, resume: bool = True
    ) -> None:
        self.path = Path(path)
        self.n_written = 0
        self._form = form
        self._resume = resume
        self._file = -1
        self._is_regular = True
        self._synced = 0.0

    def __enter__(self) -> JsonlFile:
        try:
            self._open()
            if self._is_regular:
                self._read_back()
        except OSError as error:
            self._close()
            raise self._unusable(error) from error
        except BaseException:
            self._close()
            raise
        self._synced = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._sync()
        except WriteError:
            if error is None:
                raise
        finally:
            self._close()

    def append(self, line: bytes) -> None:
        """Writes one line, its end in it; it is in the file when this returns.

        Raises:
            WriteError: it cannot be written; the file ends with the line before. Of a pipe whose
                reader is gone: BrokenPipeError.
        """
        if self._file < 0:
            raise ValueError("the file of rows is not open")
        self._write(line)
        self.n_written += 1
        if time.monotonic() - self._synced >= SYNC_EVERY:
            self._sync()

    def _open(self) -> None:
        path, option = self.path, self._form.option
        if path.is_dir():
            raise AtpError(f"{path} is a folder; expected a file's name for the rows ({option})")
        if path.exists() and not path.is_file():
            self._is_regular = False
            self._file = os.open(path, os.O_WRONLY | _FLAGS)
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise AtpError(f"{path.parent} is no folder; name another {option}") from None
        while True:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666)
            if not take_lock(self._file):
                raise AtpError(
                    f"{path} is being written by another process; wait for it, or name another "
                    f"{option}{self._form.sharing}"
                )
            if self._is_in_place():
                _sync_folder(path.parent)
                return
            self._close()  # it was replaced just now

    def _is_in_place(self) -> bool:
        """Whether the path still leads to the file that we have open."""
        try:
            return os.path.samestat(os.fstat(self._file), self.path.stat())
        except FileNotFoundError:
            return False

    def _read_back(self) -> None:
        """Takes in the rows that are there, and repairs the end."""
        with os.fdopen(os.dup(self._file), "rb", buffering=1 << 20) as stream:
            stream.seek(0)
            last, strange = read_back(stream, self.path, self._form)
        if last is None:
            return
        if not self._resume:
            raise AtpError(
                f"{self.path} holds rows already; go on with it (--resume), or name another "
                f"{self._form.option}"
            )
        self._repair(last)
        if strange:
            numbers = ", ".join(map(str, strange[:5])) + (", …" if len(strange) > 5 else "")
            log.warning(
                "%s: %d damaged lines (%s) are kept and count as not there",
                *(self.path, len(strange), numbers),
            )

    def _repair(self, last: Line) -> None:
        """Sees to it that the file ends with a whole line."""
        if last.value is None:
            os.ftruncate(self._file, last.start)
            log.warning(
                "%s: the last line was torn and is cut off (line %d, %d bytes)",
                *(self.path, last.number, len(last.raw)),
            )
        elif not last.raw.endswith(b"\n"):
            os.write(self._file, b"\n")

    def _write(self, line: bytes) -> None:
        """The whole line, or nothing."""
        start = os.fstat(self._file).st_size
        n_done = 0
        try:
            while n_done < len(line):  # one write, unless the disk is nearly full or it is a pipe
                n_done += os.write(self._file, line[n_done:])
        except BaseException as error:
            if n_done and self._is_regular:
                os.ftruncate(self._file, start)  # if this fails, the next run cuts the line off
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                raise self._lost(error) from error
            raise

    def _sync(self) -> None:
        """Waits until the rows are on the disk; a power cut takes only later ones."""
        self._synced = time.monotonic()
        if not self._is_regular:
            return
        try:
            os.fsync(self._file)
            in_place = self._is_in_place()
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOTSUP):  # nothing to wait for there
                return
            raise self._lost(error) from error
        if not in_place:
            raise WriteError(
                f"{self.path} was moved or removed while it was being written; its rows are where "
                "it is now: move it back and run the same command again"
            )

    def _close(self) -> None:
        """Frees the lock too."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lost(self, error: OSError) -> WriteError:
        return WriteError(
            f"{self.path}: cannot be written any further: {error.strerror or error}; the "
            f"{self.n_written} rows of this run are whole; make room (or see to the disk) and run "
            "the same command again, it goes on from there"
        )

    def _unusable(self, error: OSError) -> AtpError:
        where = error.filename or self.path
        return AtpError(
            f"{where}: cannot be opened for rows: {error.strerror or error}; name another "
            f"{self._form.option}"
        )


def lines_of(stream: BinaryIO) -> Iterator[Line]:
    """The lines of a file of rows, blank ones left out."""
    start = 0
    for number, raw in enumerate(iter(lambda: stream.readline(_MAX_LINE), b""), start=1):
        if not raw.isspace():
            try:
                value = json.loads(raw)
            except (ValueError, RecursionError):
                value = None
            yield Line(number, start, raw, value)
        start += len(raw)


def begins_like(raw: bytes, head: bytes) -> bool:
    """Whether a line that is not JSON may be what is left of one that begins with `head`."""
    return raw.startswith(head) or head.startswith(raw)


def read_back(stream: BinaryIO, path: Path, form: RowFormat) -> tuple[Line | None, list[int]]:
    """Hands every row of a file to ``form.take``.

    Args:
        stream: the file, from its beginning.
        path: what errors call it.
        form: which lines are rows.

    Returns:
        The last line, None in a file without lines; and the numbers of lines that are no rows. A
        last line that is not JSON is torn, and is not among these.

    Raises:
        AtpError: somebody else's file: its first line is neither a row nor what is left of one,
            or any other line is no row and the format is strict.
    """
    strange: list[int] = []
    last = None
    for line in lines_of(stream):
        is_row = form.take(line.value)
        if not is_row:
            strange.append(line.number)
        torn = line.value is None and begins_like(line.raw, form.head)
        if last is None and not (is_row or torn):
            raise form.foreign(path, line.number)
        last = line
    if last is not None and last.value is None:
        strange.remove(last.number)
    if strange and form.strict:
        raise form.foreign(path, strange[0])
    return last, strange


def _sync_folder(folder: Path) -> None:
    """Sees to it that a new file's name is on the disk too, where folders can be opened."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # a file system that does not do this
        pass
    finally:
        os.close(descriptor)
