"""The inputs that a user names -> the images to caption, one after the other.

Everything is lazy: the sorted names of one folder are held, never the names of the whole set.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from atp_cpp.batch.source.folders import (
    Found,
    entries_of,
    holds_any,
    image_suffixes,
    images_in,
    is_folder,
    is_image_name,
    is_tar_name,
)
from atp_cpp.batch.source.item import Item
from atp_cpp.batch.source.lists import (
    Line,
    check_readable,
    is_stream,
    is_web_address,
    item_of_json,
    lines_of,
)
from atp_cpp.batch.source.passed_over import kind_of, words_for
from atp_cpp.batch.source.patterns import files_matching, is_pattern
from atp_cpp.batch.source.shard import check_shard, shard_of
from atp_cpp.batch.source.tars import images_in_tar
from atp_cpp.errors import AtpError
from atp_cpp.images.urls import WebImage

_log = logging.getLogger(__name__)


def items_of(
    paths: Sequence[str],
    *,
    prompts: str | Sequence[str],
    recursive: bool = False,
    filelist: str | None = None,
    jsonl: str | None = None,
    shard: tuple[int, int] | None = None,
    allow_http: bool = False,
) -> Iterator[Item]:
    """The images of all inputs: of `paths` first, then of the list, then of the JSONL file.

    Args:
        paths: files, folders, patterns, tars.
        prompts: the questions about each image; a JSONL line may have its own questions.
        recursive: whether subfolders are read too.
        filelist: file with one name a line; "-" is stdin.
        jsonl: file with one JSON object a line; "-" is stdin.
        shard: (i, n) for part i of n, counted from 1.
        allow_http: whether addresses on the web are fetched.

    Raises:
        AtpError: no input is named, a folder holds no images, a pattern matches nothing, or a list
            cannot be read. The error is raised before the first image. An empty list, however, is
            noticed only at the end of the list.
    """
    asked = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    if not asked:
        raise AtpError("no prompt; expected at least one question for each image")
    inputs = _Inputs(tuple(paths), asked, recursive, filelist, jsonl, shard, allow_http)
    inputs.check()
    return inputs.items()


def count_of(
    paths: Sequence[str],
    *,
    recursive: bool = False,
    filelist: str | None = None,
    jsonl: str | None = None,
    shard: tuple[int, int] | None = None,
) -> int | None:
    """How many items there will be; None where counting is slow (tars) or uses them up (pipes).

    A folder named in a list counts as one.

    Raises:
        AtpError: in the same cases as items_of.
    """
    inputs = _Inputs(tuple(paths), (), recursive, filelist, jsonl, shard)
    inputs.check()
    return inputs.count()


@dataclass(frozen=True, slots=True)
class _Tar:
    """An archive that the user named."""

    path: str


@dataclass(frozen=True, slots=True)
class _Inputs:
    """All inputs that were named on a command line."""

    paths: tuple[str, ...]
    prompts: tuple[str, ...]
    recursive: bool
    filelist: str | None
    jsonl: str | None
    shard: tuple[int, int] | None
    allow_http: bool = False
    passed_over: Counter[str] = field(default_factory=Counter)

    def check(self) -> None:
        """Raises AtpError for every mistake that can be found before the first image."""
        if self.shard is not None:
            check_shard(self.shard)
        if not self.paths and self.filelist is None and self.jsonl is None:
            raise AtpError(
                "no image named; expected files, folders, patterns, tars, a file list or JSONL"
            )
        if self.filelist == "-" and self.jsonl == "-":
            raise AtpError("stdin can be the file list or the JSONL file, not both")
        for name in (self.filelist, self.jsonl):
            if name is not None:
                check_readable(name)
        for path in self.paths:
            if os.path.isdir(path):
                empty = not holds_any(path, recursive=self.recursive)
            else:
                empty = next(self._of_path(path), None) is None
            if empty:
                raise AtpError(_nothing_in(path, self.recursive))

    def items(self) -> Iterator[Item]:
        """All items of the shard."""
        n_named = 0
        self.passed_over.clear()
        for item in self.named():
            n_named += 1
            if isinstance(item, _Tar):
                yield from images_in_tar(item.path, self.prompts, self.is_wanted)
            elif self.is_wanted(item.custom_id):
                yield item
        if words := words_for(self.passed_over):
            _log.warning("passed over, since they are no images here: %s", words)
        if n_named == 0:
            lists = " and ".join(name for name in (self.filelist, self.jsonl) if name is not None)
            raise AtpError(f"{lists.replace('-', 'stdin')}: no image is named in it")

    def count(self) -> int | None:
        """The length of items(); None if counting is slow or impossible."""
        if any(is_stream(name) for name in (self.filelist, self.jsonl) if name is not None):
            return None
        n = 0
        for item in self._of_paths():
            if isinstance(item, _Tar):
                return None
            n += self.is_wanted(item.custom_id)
        if self.filelist is not None:
            for line in lines_of(self.filelist):
                path = os.fsdecode(line.data)
                if is_tar_name(path):
                    return None
                n += self.is_wanted(path)  # a folder counts as one here
        if self.jsonl is not None:
            for line in lines_of(self.jsonl):
                n += self.shard is None or self.is_wanted(self._of_json(line, self.jsonl).custom_id)
        return n

    def is_wanted(self, custom_id: str) -> bool:
        """Whether an image is in the shard."""
        return self.shard is None or shard_of(custom_id, self.shard[1]) == self.shard[0]

    def named(self) -> Iterator[Item | _Tar]:
        """All items of all shards; archives are not opened."""
        yield from self._of_paths()
        if self.filelist is not None:
            for line in lines_of(self.filelist):
                yield from self._of_line(line, self.filelist)
        if self.jsonl is not None:
            for line in lines_of(self.jsonl):
                yield self._of_json(line, self.jsonl)

    def _of_paths(self) -> Iterator[Item | _Tar]:
        for path in self.paths:
            yield from self._of_path(path)

    def _of_path(self, path: str) -> Iterator[Item | _Tar]:
        """The items and archives that a name on the command line stands for."""
        if is_pattern(path) and not os.path.lexists(path) and not is_web_address(path):
            for found in files_matching(path):
                if found.error or is_image_name(found.path):
                    yield self._item(found)
                elif is_tar_name(found.path):
                    yield _Tar(found.path)
                elif kind := kind_of(found.path):
                    self.passed_over[kind] += 1
        else:
            yield from self._of_name(path)

    def _of_name(self, path: str) -> Iterator[Item | _Tar]:
        """The items of a name that is no pattern. A named file is taken whatever its suffix is."""
        if os.path.isdir(path):
            for found in images_in(path, recursive=self.recursive, passed_over=self.passed_over):
                yield self._item(found)
        elif is_tar_name(path) and os.path.exists(path):
            yield _Tar(path)
        else:
            yield self._item(Found(path))  # a missing file is an error only when it is opened

    def _of_line(self, line: Line, filelist: str) -> Iterator[Item | _Tar]:
        where = _where(filelist, line)
        if line.error:
            yield Item(where, where, b"", self.prompts, f"{where}: {line.error}")
            return
        path = os.fsdecode(line.data)
        empty = True
        for item in self._of_name(path):
            empty = False
            yield item
        if empty:
            yield self._item(Found(path, _nothing_in(path, self.recursive)))

    def _of_json(self, line: Line, jsonl: str) -> Item:
        folder = "" if jsonl == "-" else os.path.dirname(jsonl)
        item = item_of_json(line, where=_where(jsonl, line), folder=folder, prompts=self.prompts)
        return self._fetched(item)

    def _item(self, found: Found) -> Item:
        return self._fetched(Item(found.path, found.path, found.path, self.prompts, found.error))

    def _fetched(self, item: Item) -> Item:
        """The item, with a WebImage as its source if its name is an address that may be fetched."""
        source = item.source
        if self.allow_http and isinstance(source, str) and is_web_address(source):
            return replace(item, source=WebImage(source))
        return item


def _where(name: str, line: Line) -> str:
    return f"{'stdin' if name == '-' else name}:{line.number}"


def _nothing_in(path: str, recursive: bool) -> str:
    """The error message for a folder or pattern without images: what was looked for, what to do."""
    looked_for = f"looked for files ending in .jpg, .png, .webp … ({len(image_suffixes())} kinds)"
    if words := words_for(_kinds_in(path, recursive)):
        return f"{path}: no image there; passed over: {words}"
    if not os.path.isdir(path):
        return f"{path}: no such file, and as a pattern it matches no image; {looked_for}"
    if not recursive and _holds(path, is_folder):
        return f"{path}: no image in this folder; {looked_for}; --recursive looks further in"
    if _holds(path, lambda entry: is_tar_name(entry.name)):
        return f"{path}: no image in this folder; {looked_for}; archives are named: {path}/*.tar"
    return f"{path}: no image in this folder; {looked_for}"


def _kinds_in(path: str, recursive: bool) -> Counter[str]:
    """Counts, by kind, the files in a folder or under a pattern that do not count as images."""
    kinds: Counter[str] = Counter()
    if os.path.isdir(path):
        deque(images_in(path, recursive=recursive, passed_over=kinds), maxlen=0)
    elif is_pattern(path):
        kinds.update(kind for found in files_matching(path) if (kind := kind_of(found.path)))
    return kinds


def _holds(folder: str, test: Callable[[os.DirEntry[str]], bool]) -> bool:
    entries = entries_of(folder, [])
    return any(test(entry) and not entry.name.startswith(".") for entry in entries)
