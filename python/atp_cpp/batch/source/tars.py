"""The images in a tar, as WebDataset shards have them, read once from front to back.

Only members with an image's suffix count. All other members (``.txt``, ``.json``, ``.cls`` of the
same key) are passed over. The order is the order of the archive. Of an uncompressed tar, only the
headers are read here; the bytes of a member are read when the image is opened. Of a compressed tar,
the bytes are read together with the headers.

The standard library's ``tarfile`` reads the headers. ``tarfile`` stops without an error at a
damaged header, so this module checks for that. ``tarfile`` would also keep every header in memory,
so this module drops them.
"""

from __future__ import annotations

import gzip
import logging
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from atp_cpp.batch.source.folders import is_image_name
from atp_cpp.batch.source.item import Item, Source
from atp_cpp.batch.source.limits import MAX_FILE_BYTES, too_large
from atp_cpp.errors import AtpError, ImageError
from atp_cpp.images.load import open_file

_MAX_HEADER = 1 << 20  # bytes of one long name or one set of extended fields

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """One file in an uncompressed tar; calling the object reads the bytes.

    Attributes:
        tar: path of the archive.
        offset: offset of the file's first byte in the archive.
        n_bytes: size of the file.
        stamp: "BYTES:NANOSECONDS", size and time of the file as the tar states them.
    """

    tar: str
    offset: int
    n_bytes: int
    stamp: str = ""

    def __call__(self) -> bytes:
        """Reads the bytes. Raises ImageError if the archive does not hold them any more."""
        try:
            with open(self.tar, "rb") as stream:
                stream.seek(self.offset)
                data = stream.read(self.n_bytes)
        except OSError as error:
            raise ImageError(f"{self.tar}: cannot be read: {error.strerror or error}") from error
        if len(data) < self.n_bytes:
            raise ImageError(f"{self.tar}: became shorter while it was read; copy it again")
        return data


def images_in_tar(
    path: str, prompts: tuple[str, ...], wanted: Callable[[str], bool] = lambda custom_id: True
) -> Iterator[Item]:
    """The images in a tar, each named "path/member".

    Where the tar is damaged, an item named "path" holds the error.

    Args:
        path: path of the archive.
        prompts: the questions about each image.
        wanted: a function: custom_id -> whether the image is wanted. Other images are not read.
    """
    n_images = 0
    failure = ""
    try:
        with _opened(path) as archive:
            for member in archive:
                name = f"{path}/{member.name}"
                if wanted(name):
                    error, source = archive.source_of(member, name)
                    yield Item(name, name, source, prompts, error)
                n_images += 1
        if n_images == 0:
            failure = f"{path}: no image in this archive; expected members like cat.jpg"
    except AtpError as error:
        failure = str(error)
    except Exception as error:  # tarfile and gzip raise almost anything on damaged archives
        reason = " ".join(str(error).split()) or type(error).__name__
        failure = (
            f"{path}: the archive is damaged or cut off after {n_images} images ({reason}); "
            "copy it again"
        )
    if failure and wanted(path):
        yield Item(path, path, b"", prompts, failure)


@contextmanager
def _opened(path: str) -> Iterator[_Archive]:
    with open_file(path, path, pipes=False) as stream:
        n_bytes = os.fstat(stream.fileno()).st_size
        if path.lower().endswith(".tar"):
            yield _Archive(path, stream, n_bytes)
        else:
            with gzip.GzipFile(fileobj=stream) as unpacked:
                yield _Archive(path, cast(BinaryIO, unpacked), None)


class _Archive:
    """The images of one tar, in the order of the tar.

    Args:
        path: path of the archive.
        stream: bytes of the archive, decompressed.
        n_bytes: size of the archive; None for a compressed archive, which is read front to back.
    """

    def __init__(self, path: str, stream: BinaryIO, n_bytes: int | None) -> None:
        self._path = path
        self._stream = stream
        self._n_bytes = n_bytes

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        headers = _Headers(self._stream)
        with tarfile.open(fileobj=cast(Any, headers), mode="r:") as tar:
            while (member := tar.next()) is not None:
                cast(Any, tar).members = []  # tarfile would keep all headers
                self._check_extent(member)
                base = os.path.basename(member.name)
                if is_image_name(base) and not base.startswith(".") and not member.isdir():
                    yield member
        if any(headers.last):  # tarfile treats a damaged header as the end
            raise tarfile.ReadError("invalid header")
        if not headers.last:
            _log.info("an archive without the mark at its end; is it whole? (%s)", self._path)

    def _check_extent(self, member: tarfile.TarInfo) -> None:
        if member.size < 0:
            raise tarfile.ReadError("a header with a negative size")
        end = member.offset_data + member.size
        if self._n_bytes is not None and member.isreg() and end > self._n_bytes:
            raise tarfile.ReadError("unexpected end of data")

    def source_of(self, member: tarfile.TarInfo, name: str) -> tuple[str, Source]:
        """An error or "", and the source of a member's bytes."""
        if not member.isreg() or member.issparse():
            return f"{name}: expected a plain file in the archive, got a link or the like", b""
        if member.size > MAX_FILE_BYTES:
            return too_large(name, member.size, MAX_FILE_BYTES), b""
        if self._n_bytes is not None:
            stamp = f"{member.size}:{int(member.mtime * 1_000_000_000)}"
            return "", Member(self._path, member.offset_data, member.size, stamp)
        self._stream.seek(member.offset_data)
        data = self._stream.read(member.size)
        if len(data) < member.size:
            raise tarfile.ReadError("unexpected end of data")
        return "", data


class _Headers:
    """The stream that tarfile reads headers from; refuses lengths that only a bad header has."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.last = b""  # the bytes of the last read

    def read(self, n_bytes: int) -> bytes:
        if not 0 <= n_bytes <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {n_bytes} bytes")
        self.last = self._stream.read(n_bytes)
        return self.last

    def seek(self, offset: int) -> int:
        return self._stream.seek(offset)

    def tell(self) -> int:
        return self._stream.tell()
