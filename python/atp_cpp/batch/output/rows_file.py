"""The file of rows: appended to line by line, never rewritten, whole after any end of its process.

A row is one write of one line to a descriptor in append mode. So ``kill -9`` leaves at most an
incomplete last line, which the next run cuts off. Existing rows are read back on opening: they say
which keys need not be done again. Knows nothing of images and captions.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path
from types import TracebackType

from atp_cpp.batch.output.resume import Done, Line, begins_rows, is_row, key_of, lines_of
from atp_cpp.batch.output.rows import Row
from atp_cpp.errors import AtpError, WriteError
from atp_cpp.storage.locks import take_lock

__all__ = ["RowsFile"]

SYNC_EVERY = 5.0  # seconds between two syncs; a power cut loses the rows of this time at most
_FLAGS = os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

log = logging.getLogger(__name__)


class RowsFile:
    """A context manager over a JSONL file of rows; entering opens, locks, repairs and reads it.

    A pipe or a device (/dev/stdout) is only written to: it is not locked, repaired or read. For one
    thread at a time.

    Args:
        path: the file; its folder is made when missing.
        retry_failed: caption the images again whose rows failed in earlier runs.
        resume: go on with a file that holds rows; otherwise such a file is refused.

    Raises:
        AtpError: on entering: the path is a folder, the file holds something other than rows, the
            file cannot be written, or another process writes the file.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, retry_failed: bool = False, resume: bool = True
    ) -> None:
        self.path = Path(path)
        self.n_written = 0
        self._earlier = Done(retry_failed=retry_failed)
        self._resume = resume
        self._file = -1
        self._is_regular = True
        self._synced = 0.0

    @property
    def n_good(self) -> int:
        """Number of captions that earlier runs left in this file."""
        return self._earlier.n_good

    @property
    def n_failed(self) -> int:
        """Number of failures that earlier runs left in this file."""
        return self._earlier.n_failed

    def __enter__(self) -> RowsFile:
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

    def done(self, custom_id: str, prompt: str, config_hash: str) -> bool:
        """Whether an earlier run has done this key, or this run has claimed the key."""
        return key_of(custom_id, prompt, config_hash) in self._earlier

    def done_earlier(self, custom_id: str, prompt: str, config_hash: str) -> bool:
        """Whether an earlier run has left a row of this key that need not be made again."""
        return self._earlier.earlier(key_of(custom_id, prompt, config_hash))

    def file_of(self, custom_id: str, prompt: str, config_hash: str) -> bytes:
        """The ``file_key`` of the row that an earlier run wrote for this key."""
        return self._earlier.file_of(key_of(custom_id, prompt, config_hash))

    def forget(self, custom_id: str, prompt: str, config_hash: str) -> None:
        """Makes earlier rows of this key count no more; they stay in the file."""
        self._earlier.forget(key_of(custom_id, prompt, config_hash))

    def failed_earlier(self, custom_id: str, prompt: str, config_hash: str) -> bool:
        """Whether the row of this key that counts is a failure."""
        return self._earlier.failed(key_of(custom_id, prompt, config_hash))

    def claim(self, custom_id: str, prompt: str, config_hash: str) -> bool:
        """Takes a key on, so that an image that is listed twice is captioned once.

        Returns:
            False if an earlier run has done this key, or if this run has claimed the key before.
        """
        key = key_of(custom_id, prompt, config_hash)
        return not self._earlier.earlier(key) and self._earlier.claim(key)

    def append(self, row: Row) -> None:
        """Writes one row; it is in the file when this returns.

        Raises:
            WriteError: the row cannot be written; the file ends with the row before.
            BrokenPipeError: the file is a pipe, and its reader is gone.
        """
        if self._file < 0:
            raise ValueError("the file of rows is not open")
        self._write(row.as_line())
        self.n_written += 1
        self._earlier.claim(key_of(row.custom_id, row.prompt, row.config_hash))
        if time.monotonic() - self._synced >= SYNC_EVERY:
            self._sync()

    def _open(self) -> None:
        path = self.path
        if path.is_dir():
            raise AtpError(f"{path} is a folder; expected a file's name for the rows (--out)")
        if path.exists() and not path.is_file():
            self._is_regular = False
            self._file = os.open(path, os.O_WRONLY | _FLAGS)
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise AtpError(f"{path.parent} is no folder; name another --out") from None
        while True:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666)
            if not take_lock(self._file):
                raise AtpError(
                    f"{path} is being written by another process; wait for it, or name another "
                    "--out (several processes share the work with --shard i/n, each its own file)"
                )
            if self._is_in_place():
                _sync_folder(path.parent)
                return
            self._close()  # another process replaced the file just now

    def _is_in_place(self) -> bool:
        """Whether the path still leads to the file that is open here."""
        try:
            return os.path.samestat(os.fstat(self._file), self.path.stat())
        except FileNotFoundError:
            return False

    def _read_back(self) -> None:
        """Reads the existing rows, and repairs the end of the file."""
        strange: list[int] = []  # numbers of lines that are no rows
        last = None
        with os.fdopen(os.dup(self._file), "rb", buffering=1 << 20) as stream:
            stream.seek(0)
            for line in lines_of(stream):
                if last is None and not begins_rows(line):
                    raise AtpError(
                        f"{self.path}: line {line.number} is no row of captions, so nothing is "
                        "appended to this file; name another --out"
                    )
                if is_row(line.value):
                    self._earlier.count(line.value)
                else:
                    strange.append(line.number)
                last = line
        if last is None:
            return
        if not self._resume:
            raise AtpError(
                f"{self.path} holds rows already; go on with it (--resume), or name another --out"
            )
        if last.value is None:
            strange.remove(last.number)
        self._repair(last)
        if strange:
            numbers = ", ".join(map(str, strange[:5])) + (", …" if len(strange) > 5 else "")
            log.warning(
                "%s: %d damaged lines (%s) are kept and count as not there",
                *(self.path, len(strange), numbers),
            )

    def _repair(self, last: Line) -> None:
        """Makes the file end with a whole line."""
        if last.value is None:
            os.ftruncate(self._file, last.start)
            log.warning(
                "%s: the last line was torn and is cut off (line %d, %d bytes)",
                *(self.path, last.number, len(last.raw)),
            )
        elif not last.raw.endswith(b"\n"):
            os.write(self._file, b"\n")

    def _write(self, line: bytes) -> None:
        """Writes the whole line, or nothing."""
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
            if error.errno in (errno.EINVAL, errno.ENOTSUP):  # this kind of file has no sync
                return
            raise self._lost(error) from error
        if not in_place:
            raise WriteError(
                f"{self.path} was moved or removed while it was being written; its rows are where "
                "it is now: move it back and run the same command again"
            )

    def _close(self) -> None:
        """Closes the file, which also frees the lock."""
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
            f"{where}: cannot be opened for rows: {error.strerror or error}; name another --out"
        )


def _sync_folder(folder: Path) -> None:
    """Writes the name of a new file to the disk, on systems where a folder can be opened."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # a file system that cannot sync a folder
        pass
    finally:
        os.close(descriptor)
