"""The replies of an evaluation, kept line by line, so that a broken run goes on where it was."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from atp_cpp.errors import AtpError
from atp_cpp.evaluation.evaluate import EvalRow
from atp_cpp.storage.jsonl import JsonlFile, RowFormat, read_back

__all__ = ["EvalRowsFile", "read_rows"]

_HEAD = b'{"plan": '  # how each line begins
_Rows = dict[tuple[str, str, str, str], EvalRow]


class EvalRowsFile:
    """A context manager over a file of replies; entering locks, repairs and reads it.

    Attributes:
        done: replies of earlier runs by key; complete inside ``with``. Failed ones are not in it,
            so that they are asked again.

    Args:
        path: the file.

    Raises:
        AtpError: on entering: the file holds something else, cannot be written, or another process
            writes it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.done: _Rows = {}
        self._file = JsonlFile(path, _form(self.done))

    def __enter__(self) -> EvalRowsFile:
        self._file.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.__exit__(kind, error, traceback)

    def append(self, row: EvalRow) -> None:
        """Writes one reply; it is in the file when this returns.

        Raises:
            WriteError: it cannot be written; the file ends with the reply before.
        """
        text = json.dumps(asdict(row), ensure_ascii=False) + "\n"
        self._file.append(text.encode("utf-8", "backslashreplace"))


def read_rows(path: Path) -> _Rows:
    """Replies of an earlier run by key, without failed ones; a torn last line is left out.

    Raises:
        AtpError: the file holds something else, or cannot be read.
    """
    rows: _Rows = {}
    try:
        with path.open("rb", buffering=1 << 20) as stream:
            read_back(stream, path, _form(rows))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise AtpError(f"{path}: cannot be read: {error.strerror or error}") from error
    return rows


def _form(rows: _Rows) -> RowFormat:
    """Takes rows in under their keys."""

    def take(value: Any) -> bool:
        try:
            row = EvalRow(**value)
        except TypeError:  # no object, or one with other fields
            return False
        if not all(type(text) is str for text in (*row.key, row.error)):
            return False
        if not row.error:
            rows[row.key] = row
        return True

    return RowFormat(_HEAD, take, _foreign, option="--rows", strict=True)


def _foreign(path: Path, number: int) -> AtpError:
    return AtpError(f"{path}:{number}: not a row of an evaluation; give --rows another file")
