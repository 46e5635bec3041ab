"""The files of one conversion: all of them appear under their names, or none of them.

Each file is written in a separate folder beside it, ``NAME.gguf.part/``. The folder is locked while
its run lives, so two runs never write one file. A run that was killed leaves the folder behind, and
the next run takes the folder over. The folder is on the same file system, so a finished file is
renamed, not copied. Knows nothing of the content of the files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from atp_cpp.errors import ConvertError
from atp_cpp.storage.atomic import to_disk
from atp_cpp.storage.locks import take_lock
from atp_cpp.storage.readable import readable_size

__all__ = ["Outputs", "write_error"]

PART = ".part"
_RUN = "run-"  # each run's own folder in a part folder


class Outputs:
    """A context manager over the files of one conversion; constructing it writes nothing.

    Inside ``with``, write the file ``part(path)`` for each path. Leaving without an exception
    renames all these files to their paths. Leaving with an exception, also a KeyboardInterrupt,
    removes all written files and the folders that were made for them.

    Args:
        paths: the files to come, all in one folder, which is made when missing.
        force: replace files that are there.

    Raises:
        ConvertError: a file is there and force is not set, a folder is in a file's place, or the
            files' folder cannot be made or written.
    """

    def __init__(self, paths: Sequence[Path], *, force: bool) -> None:
        folders = {path.parent for path in paths}
        if len(folders) != 1 or len(set(paths)) != len(paths):
            raise ValueError(f"expected different files in one folder, got {list(paths)}")
        self._paths = tuple(paths)
        self._folder = folders.pop()
        self._force = force
        self._made: list[Path] = []  # folders, outermost first
        self._locks: list[int] = []
        self._work: dict[Path, Path] = {}  # each path's folder to write in
        try:
            self._refuse_existing()
            _check_folder(self._folder)
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def check_space(self, needed: int) -> None:
        """Compares with what is free on the files' file system.

        What an earlier run left behind counts as free, since this run removes it.

        Args:
            needed: bytes.

        Raises:
            ConvertError: there is less.
        """
        try:
            free = shutil.disk_usage(_existing(self._folder)).free
            left_behind = sum(_size_of(_part_folder(path)) for path in self._paths)
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        if needed > free + left_behind:
            raise ConvertError(
                f"{self._folder}: not enough space: expected {readable_size(needed)}, got "
                f"{readable_size(free + left_behind)} free; free some, or name another "
                "--outfile-dir"
            )

    def part(self, path: Path) -> Path:
        """The file to write instead of `path`; only inside ``with``."""
        return self._work[path] / path.name

    def __enter__(self) -> Outputs:
        try:
            self._make_folder()
            for path in self._paths:
                self._work[path] = self._take(_part_folder(path))
            self._refuse_existing()  # again: another run may have finished in the meantime
        except OSError as error:
            self._clean()
            raise _unwritable(self._folder, error) from error
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._publish()
        except OSError as failed:
            raise _write_error(failed, self._folder) from failed
        finally:
            self._clean()
        if isinstance(error, OSError) and _is_full(error):
            raise _write_error(error, self._folder) from error

    def _refuse_existing(self) -> None:
        for path in self._paths:
            if path.is_dir():
                raise ConvertError(f"{path} is a folder; expected a file's name")
            if os.path.lexists(path) and not self._force:
                raise ConvertError(
                    f"{path} is there already; name another --outfile-dir or replace it with "
                    "--force"
                )

    def _make_folder(self) -> None:
        missing = [self._folder, *self._folder.parents]
        missing = missing[: missing.index(_existing(self._folder))]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            self._made.append(folder)

    def _take(self, folder: Path) -> Path:
        """Locks the folder of a file's parts, empties it, and makes a fresh one in it.

        A process that outlives its killed run has the path of a deleted folder, so it cannot write
        into the folder of the next run.
        """
        while True:
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                raise ConvertError(
                    f"{folder} is in the way; move it, or name another --outfile-dir"
                )
            folder.mkdir(exist_ok=True)
            if os.name == "nt":  # a folder cannot be opened, nor locked
                break
            try:
                lock = os.open(folder, os.O_RDONLY)
            except FileNotFoundError:
                continue  # its run ended just now
            self._locks.append(lock)
            if not take_lock(lock):
                raise ConvertError(
                    f"{folder.with_suffix('')} is being written by another run; wait for it or "
                    "name another --outfile-dir"
                )
            try:
                if os.path.samestat(os.fstat(lock), folder.stat()):
                    break
            except FileNotFoundError:
                pass
        for left_behind in folder.glob(f"{_RUN}*"):
            shutil.rmtree(left_behind)
        return Path(tempfile.mkdtemp(prefix=_RUN, dir=folder))

    def _publish(self) -> None:
        """Renames all files. After an error, the files that were there before are brought back."""
        for path in self._paths:
            to_disk(self.part(path))
        self._refuse_existing()
        done: list[Path] = []
        try:
            for path in self._paths:
                done.append(path)
                if os.path.lexists(path):
                    _keep(path, self._kept(path))
                os.replace(self.part(path), path)
        except BaseException:
            for path in done:
                if os.path.lexists(self._kept(path)):
                    os.replace(self._kept(path), path)
                elif not self.part(path).exists():
                    path.unlink(missing_ok=True)
            raise

    def _kept(self, path: Path) -> Path:
        return self._work[path] / "replaced"

    def _clean(self) -> None:
        """Removes the parts and, while empty, the folders made for them; frees the locks."""
        for work in self._work.values():
            shutil.rmtree(work, ignore_errors=True)
            _remove_empty(work.parent)
        self._work.clear()
        for lock in self._locks:
            os.close(lock)
        self._locks.clear()
        for folder in reversed(self._made):
            _remove_empty(folder)
        self._made.clear()


def write_error(error: OSError, part: Path) -> ConvertError:
    """The error to raise when writing `part` (see `Outputs.part`), or a file beside it, failed."""
    folders = (folder.parent for folder in part.parents if folder.suffix == PART)
    return _write_error(error, next(folders, part.parent))


def _write_error(error: OSError, folder: Path) -> ConvertError:
    if not _is_full(error):
        return _unwritable(folder, error)
    return ConvertError(
        f"{folder}: no space for the output ({error.strerror or error}); free some, or name "
        "another --outfile-dir"
    )


def _is_full(error: OSError) -> bool:
    """Whether the disk, a quota or a limit is full; NumPy only states how much it wrote."""
    if error.errno is None:
        return str(error).endswith("written")
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _part_folder(path: Path) -> Path:
    return path.with_name(path.name + PART)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next((f for f in (folder, *folder.parents) if os.path.lexists(f)), Path())


def _check_folder(folder: Path) -> None:
    existing = _existing(folder)
    if not existing.is_dir():
        raise ConvertError(f"{existing} is no folder; expected one for --outfile-dir")
    effective = os.access in os.supports_effective_ids
    if not os.access(existing, os.W_OK | os.X_OK, effective_ids=effective):
        raise ConvertError(f"{existing} cannot be written; name another --outfile-dir")


def _unwritable(folder: Path, error: OSError) -> ConvertError:
    where = error.filename or folder
    return ConvertError(
        f"{where}: cannot be written: {error.strerror or error}; name another --outfile-dir"
    )


def _size_of(folder: Path) -> int:
    left_behind = folder.glob(f"{_RUN}*/*")
    return sum(path.stat().st_size for path in left_behind if path.is_file())


def _keep(path: Path, kept: Path) -> None:
    """Gives the file a second name; where the file system has no links, renames it."""
    try:
        os.link(path, kept, follow_symlinks=False)
    except OSError:
        os.replace(path, kept)


def _remove_empty(folder: Path) -> None:
    """Removes the folder unless there is something in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()
