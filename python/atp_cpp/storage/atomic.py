"""A file that is whole or not there: written under another name beside it, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

__all__ = ["part_of", "replacing", "to_disk"]


@contextlib.contextmanager
def replacing(target: Path, *, part: Path | None = None, sync: bool = True) -> Iterator[Path]:
    """Inside ``with``, write the file that is given; afterwards it has the name of `target`.

    An exception, a KeyboardInterrupt too, removes what was written, and a file that was at `target`
    stays as it was. The caller opens the file, so it has the permissions of any new file.

    Args:
        target: the file to make, or to replace.
        part: the name to write under, in the folder of `target`. If not given, it is a name that
            no other process has.
        sync: wait until the data is on the disk before renaming. Then a power cut leaves the old
            file or the new one.

    Yields:
        The file to write.

    Raises:
        OSError: it cannot be brought to the disk, or renamed.
    """
    if part is None:
        part = target.with_name(f".{_tag(target)}.{secrets.token_hex(8)}.part")
    try:
        yield part
        if sync:
            to_disk(part)
        part.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):  # the error that is on its way says more
            part.unlink(missing_ok=True)
        raise


def part_of(target: Path) -> Path:
    """A name beside `target` that is the same in every run.

    A run that was killed leaves this file behind, and the next run takes it over. Two processes
    that write one target at once need names of their own; see `replacing`.
    """
    return target.with_name(f".{_tag(target)}.part")


def to_disk(path: Path) -> None:
    """Waits until a file's data is on the disk. A late error of the disk is raised here.

    Raises:
        OSError: the disk refuses.
    """
    with path.open("r+b" if os.name == "nt" else "rb") as stream:  # Windows syncs what it may write
        os.fsync(stream.fileno())


def _tag(path: Path) -> str:
    """Stands for the name of a file, and is short where the name itself may be at its limit."""
    return hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
