"""Encoded images on disk, so that a second run over the same images needs no vision encoder.

Each entry is one file. It holds the float32 values as the encoder gave them, so a caption made from
an entry is the same bit for bit. The name of an entry is a hash of the image, the encoder and the
way images are prepared for the encoder. In the file, before the numbers: 8 bytes of magic, the name
(32), a checksum (16), rows and columns (uint32 each).

Entries appear by rename, so a reader meets whole entries only. An entry that was cut short or
changed is found by its checksum, and made again. Several processes may share a folder. Every entry
can be made again: when the disk refuses to read or write, the run goes on without a message.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import struct
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atp_cpp.errors import AtpError
from atp_cpp.storage.atomic import replacing

DEFAULT_BYTES = 2 << 30

_MAGIC = b"atpembd1"
_HEAD = struct.Struct("<8s32s16sII")
_NAME = re.compile(r"[0-9a-f]{64}\.embd")
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.embd-part")
_STALE = 3600  # s; no process uses a temporary file that is older than this
_LOOKS = 16  # the folder is listed again after max_bytes / _LOOKS bytes were written

_log = logging.getLogger(__name__)


class EmbeddingCache:
    """A folder of image embeddings.

    Args:
        folder: the folder; made if it is missing.
        max_bytes: bytes that all entries may take together. The oldest entries are deleted first.
            Each further process that writes may exceed the limit by a sixteenth.

    Raises:
        AtpError: the folder cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int = DEFAULT_BYTES) -> None:
        self._folder, self._max_bytes = Path(folder), max_bytes
        self._allowance = 0  # bytes to write before the folder is listed again
        self._quiet = False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AtpError(
                f"{folder}: expected a folder for image embeddings: {error.strerror or error}"
            ) from error

    def get(self, sha256: str, encoder: str) -> NDArray[np.float32] | None:
        """The embeddings of an image.

        Args:
            sha256: SHA-256 of the image.
            encoder: text that names the encoder and the way images are prepared for the encoder.

        Returns:
            [n_image_tokens, n_embd_inp], read-only; None if the entry is missing or damaged.
        """
        name = _name(sha256, encoder)
        try:
            raw = self._path(name).read_bytes()
        except OSError:
            return None
        if len(raw) < _HEAD.size:
            return None
        magic, named, checksum, n_rows, n_cols = _HEAD.unpack_from(raw)
        body = memoryview(raw)[_HEAD.size :]
        if (magic, named, len(body)) != (_MAGIC, name, 4 * n_rows * n_cols):
            return None
        if _checksum(body) != checksum:
            return None
        return np.frombuffer(body, "<f4").reshape(n_rows, n_cols)

    def put(self, sha256: str, encoder: str, embd: NDArray[np.float32]) -> None:
        """Stores the embeddings [n_image_tokens, n_embd_inp] of an image, if the disk allows it."""
        if self._quiet:
            return
        name = _name(sha256, encoder)
        body = np.ascontiguousarray(embd, "<f4").tobytes()
        head = _HEAD.pack(_MAGIC, name, _checksum(body), *embd.shape)
        temporary = self._folder / f".{secrets.token_hex(16)}.embd-part"
        try:
            if self._make_room(len(head) + len(body)):
                with (
                    replacing(self._path(name), part=temporary, sync=False) as part,
                    part.open("xb") as stream,
                ):
                    stream.write(head)
                    stream.write(body)
        except OSError as error:
            self._quiet = True
            _log.warning(
                "%s: image embeddings are not kept any more: %s; the captions go on without",
                self._folder,
                error.strerror or error,
            )

    def _path(self, name: bytes) -> Path:
        return self._folder / f"{name.hex()}.embd"

    def _make_room(self, n_bytes: int) -> bool:
        """Whether `n_bytes` may be written; deletes the oldest entries first where needed."""
        if n_bytes > self._max_bytes:
            return False
        if n_bytes > self._allowance:
            self._allowance = max(n_bytes, self._max_bytes // _LOOKS)
            self._trim(self._max_bytes - self._allowance)
        self._allowance -= n_bytes
        return True

    def _trim(self, target: int) -> None:
        """Deletes the oldest entries until the others take no more than `target` bytes."""
        entries: list[tuple[float, int, str]] = []
        now = time.time()
        with os.scandir(self._folder) as listing:
            for found in listing:
                temporary = _TEMPORARY.fullmatch(found.name)
                if not temporary and not _NAME.fullmatch(found.name):
                    continue  # no file of this cache
                try:
                    status = found.stat(follow_symlinks=False)
                except FileNotFoundError:  # another process deleted the file first
                    continue
                if not temporary:
                    entries.append((status.st_mtime, status.st_size, found.path))
                elif now - status.st_mtime > _STALE:
                    Path(found.path).unlink(missing_ok=True)
        entries.sort()
        excess = sum(size for _, size, _ in entries) - target
        for _, size, path in entries:
            if excess <= 0:
                return
            Path(path).unlink(missing_ok=True)
            excess -= size


def _name(sha256: str, encoder: str) -> bytes:
    return hashlib.sha256(f"{sha256}:{encoder}".encode()).digest()


def _checksum(body: bytes | memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()
