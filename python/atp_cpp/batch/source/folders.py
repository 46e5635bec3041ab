"""The images in a folder, in an order that stays the same.

The names of all images in a folder are held in memory, sorted, and given. The subfolders follow,
one by one. A file counts as an image by its suffix alone; no file is opened here.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from PIL import Image

from atp_cpp.batch.source.passed_over import kind_of
from atp_cpp.images.load import register_heif

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
# formats that Pillow lists but cannot open by itself: some start another program, some need a
# handler that Pillow does not have
_NOT_BY_PILLOW = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """A path that was found; or a path that cannot be read, with the reason in one line."""

    path: str
    error: str = ""


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Suffixes of the formats that Pillow opens, in lower case with the dot.

    HEIC is among them if pillow-heif is installed.
    """
    register_heif()
    known = Image.registered_extensions()
    opened = {*Image.OPEN, "MPO"} - _NOT_BY_PILLOW  # MPO: several JPEGs in one
    return frozenset(suffix.lower() for suffix, kind in known.items() if kind in opened)


def is_image_name(name: str) -> bool:
    """Whether a file with this name counts as an image when it is found in a folder."""
    return os.path.splitext(name)[1].lower() in image_suffixes()


def is_tar_name(name: str) -> bool:
    """Whether a file with this name counts as an archive of images."""
    return name.lower().endswith(TAR_SUFFIXES)


def images_in(
    folder: str, *, recursive: bool, passed_over: Counter[str] | None = None
) -> Iterator[Found]:
    """The images in a folder, sorted by name; then, if `recursive`, the images in its subfolders.

    Hidden files and folders are left out. A linked folder is entered like any other folder, but
    only once by a link, and never from inside itself. A folder that cannot be listed comes out as a
    Found with an error. `passed_over` counts the files that a user may take for images, by
    ``kind_of``.
    """
    top = _Folder(folder.rstrip("/") or "/", is_link=False, above=None)
    entered: set[_Identity] = set()  # by links
    waiting = [top]
    while waiting:
        here = waiting.pop()
        here.identity = _identity(here.path)
        if here.is_link and here.identity is not None:
            if here.identity in entered or here.is_inside_itself():
                _log.info("a link to a folder that was entered before is skipped (%s)", here.path)
                continue
            entered.add(here.identity)
        images, folders, error = _listed(here, passed_over)
        while images:
            yield Found(os.path.join(here.path, images.pop()))
        if error:
            yield Found(here.path, error)
        if recursive:
            waiting += folders


def holds_any(folder: str, *, recursive: bool) -> bool:
    """Whether the folder holds an image or a subfolder that cannot be listed; sorts very little."""
    for entry in entries_of(folder, []):
        if not entry.name.startswith(".") and is_image_name(entry.name) and not is_folder(entry):
            return True
    return next(images_in(folder, recursive=recursive), None) is not None


_Identity = tuple[int, int]  # device and inode


@dataclass(slots=True)
class _Folder:
    """A folder on the way down the tree, and the folders that contain it."""

    path: str
    is_link: bool
    above: _Folder | None = field(repr=False)
    identity: _Identity | None = None

    def is_inside_itself(self) -> bool:
        folder = self.above
        while folder is not None and folder.identity != self.identity:
            folder = folder.above
        return folder is not None


def _listed(
    here: _Folder, passed_over: Counter[str] | None
) -> tuple[list[str], list[_Folder], str]:
    """Images and subfolders of a folder, each list in reverse order; and an error, or ""."""
    images: list[str] = []
    folders: list[_Folder] = []
    errors: list[str] = []
    for entry in entries_of(here.path, errors):
        if entry.name.startswith("."):
            continue
        if is_folder(entry):
            inner = os.path.join(here.path, entry.name)
            folders.append(_Folder(inner, entry.is_symlink(), here))
        elif is_image_name(entry.name):
            images.append(entry.name)
        elif passed_over is not None and (kind := kind_of(entry.name)):
            passed_over[kind] += 1
    images.sort(reverse=True)
    folders.sort(key=lambda folder: folder.path, reverse=True)
    return images, folders, "".join(errors)


def entries_of(folder: str, errors: list[str]) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder ("" is the current folder), unsorted.

    A failure ends the entries, and one line about it is added to `errors`.
    """
    try:
        with os.scandir(folder or ".") as entries:
            yield from entries
    except PermissionError:
        errors.append(f"{folder}: no permission to list this folder; chmod or chown it")
    except (OSError, ValueError) as failure:
        errors.append(
            f"{folder}: cannot be listed: {getattr(failure, 'strerror', None) or failure}"
        )


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to a folder."""
    try:
        return entry.is_dir()
    except OSError:  # a circle of links, or a folder that may not be entered
        return False


def _identity(folder: str) -> _Identity | None:
    """Device and inode of a folder, the same under every name; None if they cannot be read."""
    try:
        status = os.stat(folder)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
