"""A text file beside each image, ``cat.jpg`` -> ``cat.txt``, as trainers of image models read them.

Each is written under another name in the same folder, then renamed. So a text is whole or missing.
Knows nothing of models.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from atp_cpp.errors import AtpError, WriteError
from atp_cpp.storage.atomic import part_of, replacing

__all__ = ["EXISTING", "TextFileError", "TextFiles"]

EXISTING = ("skip", "overwrite", "append", "prepend")
SUFFIX = ".txt"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TextFileError(AtpError):
    """One image's text cannot be written; the other images go on."""


class TextFiles:
    """Writes the texts of one run. For one thread at a time.

    Args:
        existing: what happens to an existing text. "skip" keeps the text, and its image is not
            captioned. "overwrite" replaces the text. "append" and "prepend" add the caption at the
            end or at the front, unless the caption is already there; so a resumed run adds nothing
            twice.
        inputs: files that the run reads, for instance a list of images; no text replaces them.

    Raises:
        AtpError: existing is none of these.
    """

    def __init__(
        self, existing: str = "skip", inputs: Iterable[str | os.PathLike[str]] = ()
    ) -> None:
        if existing not in EXISTING:
            raise AtpError(
                f"existing={existing!r}: expected one of {', '.join(EXISTING)} for text files "
                "that are there already"
            )
        self._existing = existing
        self._owners: dict[int, str] = {}  # hash of a text's path -> the suffix of its image
        self._inputs = frozenset(map(os.path.realpath, inputs))
        self._folder = ""  # the last folder that was found writable

    def wanted(self, image: Any) -> bool:
        """Whether an image needs a caption; call this before the image is captioned.

        Args:
            image: path of the image.

        Returns:
            False if the image's text exists and is kept, or if this run had the image before.

        Raises:
            TextFileError: another image of this run has the same text file, or the text file
                cannot be written.
            AtpError: `image` is no path. An image in an archive or in memory has no folder where a
                text could go.
        """
        path = _path_of(image)
        text = text_path(path)
        if os.path.realpath(text) in self._inputs:
            raise TextFileError(f"{path}: its text would replace {text}, an input; rename one")
        first = self._take(text, path)
        self._check_folder(text)
        return first and not (self._existing == "skip" and os.path.lexists(text))

    def words_of_old(self) -> str:
        """The words of a warning on the text of a picture that was replaced."""
        return ", but its text stays (--existing overwrite)" if self._existing == "skip" else ""

    def write(self, image: Any, captions: Sequence[str]) -> None:
        """Writes the captions of one image, one for each prompt, in the order of the prompts.

        Raises:
            TextFileError: this text cannot be written.
            WriteError: no text can be written any more, the disk is full.
        """
        path = _path_of(image)
        text = text_path(path)
        self._take(text, path)
        try:
            if self._existing == "skip" and os.path.lexists(text):
                return
            old = text.read_bytes() if self._existing in ("append", "prepend") else b""
        except FileNotFoundError:
            old = b""
        except OSError as error:
            raise _failed(text, error) from error
        new = self._joined(text, old, "\n".join(captions) + "\n")
        if new != old or self._existing == "overwrite":
            _replace(text, new)

    def _take(self, text: Path, image: Path) -> bool:
        """Notes that this text belongs to this image, in about 80 bytes; False if it was noted."""
        key, n_before = hash(os.path.abspath(text)), len(self._owners)
        owner = self._owners.setdefault(key, image.suffix)
        if owner != image.suffix:
            raise TextFileError(
                f"{image}: its text would be {text.name}, which is that of "
                f"{image.with_suffix(owner).name} already; rename one of the two images"
            )
        return len(self._owners) > n_before

    def _check_folder(self, text: Path) -> None:
        folder = os.fspath(text.parent)
        if folder == self._folder:
            return
        if os.path.isdir(folder) and not os.access(folder, os.W_OK | os.X_OK):
            raise TextFileError(f"{text}: the folder cannot be written; use --out instead of --txt")
        self._folder = folder

    def _joined(self, text: Path, old: bytes, caption: str) -> bytes:
        if self._existing not in ("append", "prepend") or not old:
            return caption.encode("utf-8", "replace")
        try:
            there = old.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise TextFileError(
                f"{text}: expected UTF-8, so nothing can be added to it; convert or move it"
            ) from None
        line_end = "" if there.endswith("\n") or not there else "\n"
        whole = there + line_end
        if self._existing == "append":
            has = whole == caption or whole.endswith("\n" + caption)
            return old if has else (whole + caption).encode("utf-8", "replace")
        return old if whole.startswith(caption) else (caption + whole).encode("utf-8", "replace")


def text_path(image: Path) -> Path:
    """The path of an image's text file.

    Raises:
        TextFileError: this path is the path of the image itself.
    """
    text = image.with_suffix(SUFFIX) if image.name else image
    if text.name.lower() == image.name.lower():
        raise TextFileError(f"{image}: its text would replace the image itself; rename the image")
    return text


def _path_of(image: Any) -> Path:
    if isinstance(image, (str, os.PathLike)):
        return Path(image)
    raise AtpError(
        "text files go beside image files, and an image of an archive or of memory has no folder; "
        "use --out instead of --txt"
    )


def _replace(text: Path, content: bytes) -> None:
    """By another name and a rename; a run that was killed leaves that name to the next one."""
    try:
        # on the disk before its rows, which say that it is there
        with replacing(text, part=part_of(text)) as part:
            part.write_bytes(content)
    except OSError as error:
        raise _failed(text, error) from error


def _failed(text: Path, error: OSError) -> AtpError:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return WriteError(
            f"{text}: cannot be written: {reason}; the texts so far are whole; make room and run "
            "the same command again, it goes on from there"
        )
    return TextFileError(f"{text}: cannot be written: {reason}")
