"""Reads rows back: which keys an earlier run has done, and which row of a key is the last.

A run only appends to a file of rows. So a row that was made again is in the file twice; the last
row of a key counts. No file is held in memory: only the 16-byte key of each row is kept.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from atp_cpp.batch.output.rows import CANCELLED, OK, Row
from atp_cpp.errors import AtpError
from atp_cpp.storage.jsonl import Line, begins_like, lines_of

__all__ = ["HEAD", "Done", "file_key", "is_row", "key_of", "read_rows"]

_KEY_BYTES = 16
HEAD = b'{"custom_id": '  # how each of our lines begins
_TEXTS = ("custom_id", "image", "prompt", "caption", "finish_reason", "status", "config_hash")

log = logging.getLogger(__name__)


def key_of(custom_id: str, prompt: str, config_hash: str) -> bytes:
    """A 16-byte hash of image id, prompt and configuration: what a row answers."""
    text = f"{len(custom_id)},{len(prompt)}:{custom_id}{prompt}{config_hash}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES).digest()


def file_key(stamp: Any, sha256: Any) -> bytes:
    """An 8-byte hash of a file's stamp, then an 8-byte hash of its sha256; b"" without a sha256."""
    if not (type(sha256) is str and sha256):
        return b""
    parts = (stamp if type(stamp) is str else "", sha256)
    return b"".join(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for text in parts
    )


def is_row(value: Any) -> bool:
    """Whether the value has the fields of a row that resuming needs."""
    return isinstance(value, dict) and all(type(value.get(name)) is str for name in _TEXTS)


def _begins_rows(first: Line) -> bool:
    """Whether the first line of a file is a row, or what is left of one."""
    if first.value is not None:
        return is_row(first.value)
    return begins_like(first.raw, HEAD)


class Done:
    """The keys that need not be answered again.

    The last row of a key counts. A failed row counts as done unless `retry_failed` is set. A row
    that was interrupted never counts as done.

    Args:
        retry_failed: caption the images again whose rows failed in earlier runs.
    """

    def __init__(self, *, retry_failed: bool = False) -> None:
        self._retry_failed = retry_failed
        self._good: dict[bytes, bytes] = {}  # key -> file_key of the row's image
        self._failed: dict[bytes, bytes] = {}
        self._now: set[bytes] = set()  # keys that this run has taken on

    @property
    def n_good(self) -> int:
        """Keys with a caption from earlier runs."""
        return len(self._good)

    @property
    def n_failed(self) -> int:
        """Keys that failed in earlier runs."""
        return len(self._failed)

    def count(self, row: Mapping[str, Any]) -> None:
        """Notes a row of an earlier run. Call it for the rows in the order of the file."""
        key = key_of(row["custom_id"], row["prompt"], row["config_hash"])
        self.forget(key)
        of_file = file_key(row.get("stamp"), row.get("sha256"))
        if row["status"] == OK:
            self._good[key] = of_file
        elif row["finish_reason"] != CANCELLED:
            self._failed[key] = of_file

    def forget(self, key: bytes) -> None:
        """Makes the rows that earlier runs wrote for this key count no more."""
        self._good.pop(key, None)
        self._failed.pop(key, None)

    def file_of(self, key: bytes) -> bytes:
        """The file_key of the row that an earlier run wrote for this key; b"" if there is none."""
        return self._good.get(key) or self._failed.get(key) or b""

    def earlier(self, key: bytes) -> bool:
        """Whether an earlier run has done this key."""
        return key in self._good or (not self._retry_failed and key in self._failed)

    def failed(self, key: bytes) -> bool:
        """Whether the last row of this key in earlier runs is a failure."""
        return key in self._failed

    def claim(self, key: bytes) -> bool:
        """Takes a key on for this run; False if this run has it already."""
        if key in self._now:
            return False
        self._now.add(key)
        return True

    def __contains__(self, key: bytes) -> bool:
        return key in self._now or self.earlier(key)


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    """The rows of a file, the last one of each key, in the order of the file.

    Reads the file twice and holds about 50 bytes a row, so a file may be very long. Lines that are
    no rows are left out, with a warning.

    Raises:
        AtpError: the file does not exist, cannot be read, or is no file of rows.
    """
    name = os.fspath(path)
    try:
        with Path(path).open("rb", buffering=1 << 20) as stream:
            last = _last_of_each_key(stream, name)
            stream.seek(0)
            yield from _chosen(stream, last, name)
    except OSError as error:
        raise AtpError(f"{name}: cannot be read: {error.strerror or error}") from error


def _last_of_each_key(stream: BinaryIO, name: str) -> NDArray[np.bool_]:
    """[n_rows], whether a row is the last of its key."""
    keys = bytearray()
    first = None
    for line in lines_of(stream):
        if first is None and not _begins_rows(line):
            raise AtpError(f"{name}: line {line.number} is no row of captions; name a file of rows")
        first = line.number
        if is_row(line.value):
            row = line.value
            keys += key_of(row["custom_id"], row["prompt"], row["config_hash"])
    halves = np.frombuffer(bytes(keys), dtype="<u8").reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal keys stay in file order
    ordered = halves[order]
    last = np.ones(len(halves), dtype=np.bool_)
    last[order[:-1]] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return last


def _chosen(stream: BinaryIO, last: NDArray[np.bool_], name: str) -> Iterator[Row]:
    wanted = iter(last)
    for line in lines_of(stream):
        if not is_row(line.value):
            log.warning("%s:%d: no row; left out", name, line.number)
            continue
        is_last = next(wanted, None)
        if is_last is None:  # another process appended rows after the first reading
            return
        if not is_last:
            continue
        try:
            row = Row.from_dict(line.value)
        except ValueError as error:
            log.warning("%s:%d: a damaged row is left out: %s", name, line.number, error)
            continue
        yield row
