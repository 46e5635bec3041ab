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

    A pipe or a device (/dev/stdout) is written to and nothing else. For one thread at a time.

    Args:
        path: the file; its folder is made when missing.
        retry_failed: failed rows of earlier runs are not done.
        resume: go on with a file that holds rows; otherwise such a file is refused.

    Raises:
        AtpError: on entering: a folder, a file that is not ours or cannot be written, or one that
            another process writes.
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
        """Captions that earlier runs left here."""
        return self._earlier.n_good

    @property
    def n_failed(self) -> int:
        """Failures that earlier runs left here."""
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
        """Whether there is a row of this key, or it has been claimed."""
        return key_of(custom_id, prompt, config_hash) in self._earlier

    def done_earlier(self, custom_id: str, prompt: str, config_hash: str) -> bool:
        """Whether an earlier run has left a row of this key that need not be made again."""
        return self._earlier.earlier(key_of(custom_id, prompt, config_hash))

    def file_of(self, custom_id: str, prompt: str, config_hash: str) -> bytes:
        """Which file an earlier run's row of this key is of; see ``file_key``."""
        return self._earlier.file_of(key_of(custom_id, prompt, config_hash))

    def forget(self, custom_id: str, prompt: str, config_hash: str) -> None:
        """Earlier rows of this key count no more; they stay in the file, a new one comes after."""
        self._earlier.forget(key_of(custom_id, prompt, config_hash))

    def failed_earlier(self, custom_id: str, prompt: str, config_hash: str) -> bool:
        """Whether the row of this key that counts is a failure."""
        return self._earlier.failed(key_of(custom_id, prompt, config_hash))

    def claim(self, custom_id: str, prompt: str, config_hash: str) -> bool:
        """Takes a key on: an image listed twice is captioned once, also while it is under way.

        Returns:
            False if there is a row of it, or it has been claimed before.
        """
        key = key_of(custom_id, prompt, config_hash)
        return not self._earlier.earlier(key) and self._earlier.claim(key)

    def append(self, row: Row) -> None:
        """Writes one row; it is in the file when this returns.

        Raises:
            WriteError: it cannot be written; the file ends with the row before. Of a pipe whose
                reader is gone: BrokenPipeError.
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
