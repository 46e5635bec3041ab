"""The file of caption rows: a JSONL file that knows which captions need not be made again.

What is there already is read back on opening. Knows nothing of images and captions.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

from atp_cpp.batch.output.resume import HEAD, Done, is_row, key_of
from atp_cpp.batch.output.rows import Row
from atp_cpp.errors import AtpError
from atp_cpp.storage.jsonl import JsonlFile, RowFormat

__all__ = ["RowsFile"]

_SHARING = " (several processes share the work with --shard i/n, each its own file)"


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
        self._earlier = Done(retry_failed=retry_failed)
        form = RowFormat(HEAD, self._take, _foreign, option="--out", sharing=_SHARING)
        self._file = JsonlFile(path, form, resume=resume)

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    @property
    def n_written(self) -> int:
        """Rows of this run."""
        return self._file.n_written

    @property
    def n_good(self) -> int:
        """Number of captions that earlier runs left in this file."""
        return self._earlier.n_good

    @property
    def n_failed(self) -> int:
        """Number of failures that earlier runs left in this file."""
        return self._earlier.n_failed

    def __enter__(self) -> RowsFile:
        self._file.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.__exit__(kind, error, traceback)

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
        self._file.append(row.as_line())
        self._earlier.claim(key_of(row.custom_id, row.prompt, row.config_hash))

    def _take(self, value: Any) -> bool:
        if not is_row(value):
            return False
        self._earlier.count(value)
        return True


def _foreign(path: Path, number: int) -> AtpError:
    return AtpError(
        f"{path}: line {number} is no row of captions, so nothing is appended to this file; name "
        "another --out"
    )
