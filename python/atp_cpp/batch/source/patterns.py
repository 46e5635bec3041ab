"""Patterns of paths ("photos/**/*.jpg") -> the files they match, sorted, each once.

`*` is any part of a name, `?` is one character, `[abc]` is one of these characters, `**` is any
number of folders. As in a shell, a name that begins with a dot is matched only by a part that
begins with a dot, and `**` enters neither hidden nor linked folders.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator

from atp_cpp.batch.source.folders import Found, entries_of, is_folder

_WILDCARD = re.compile(r"[*?\[]")
_ANY_DEPTH = "**"


def is_pattern(text: str) -> bool:
    """Whether the text contains a wildcard."""
    return bool(_WILDCARD.search(text))


def files_matching(pattern: str) -> Iterator[Found]:
    """The files (no folders) that a pattern matches: first the files of a folder, then deeper ones.

    A folder that cannot be listed comes out as a Found with an error. A pattern that matches
    nothing is no error.
    """
    root, parts = _split(pattern)
    if not os.path.isdir(root or "."):
        return
    matcher = _Matcher(parts)
    waiting = [(root, matcher.start())]
    while waiting:
        folder, state = waiting.pop()
        files: list[str] = []
        folders: list[tuple[str, frozenset[int]]] = []
        errors: list[str] = []
        for entry in entries_of(folder, errors):
            if is_folder(entry):
                after = matcher.into(state, entry.name, is_link=entry.is_symlink())
                if after:
                    folders.append((os.path.join(folder, entry.name), after))
            elif matcher.takes(state, entry.name):
                files.append(entry.name)
        files.sort(reverse=True)
        while files:
            yield Found(os.path.join(folder, files.pop()))
        for error in errors:
            yield Found(folder, error)
        folders.sort(key=lambda pair: pair[0], reverse=True)
        waiting += folders


def _split(pattern: str) -> tuple[str, list[str]]:
    """The folder before the first wildcard ("" is the current folder), and the parts after it."""
    parts = pattern.split("/")
    n_plain = next(i for i, part in enumerate(parts) if _WILDCARD.search(part))
    root = "/".join(parts[:n_plain])
    return (root or "/") if n_plain else "", parts[n_plain:]


class _Matcher:
    """Follows a pattern down the tree.

    A state is the set of parts that the next name may match; `**` adds several parts at once. So no
    path is met twice, and the work does not grow with the number of `**`.
    """

    def __init__(self, parts: list[str]) -> None:
        kept = [part for i, part in enumerate(parts) if part or i == len(parts) - 1]
        self._parts = kept
        self._forms = [re.compile(fnmatch.translate(part)) for part in kept]

    def start(self) -> frozenset[int]:
        """The state before the first name."""
        return self._closed({0})

    def into(self, state: frozenset[int], name: str, *, is_link: bool) -> frozenset[int]:
        """The state inside a folder; empty if nothing in the folder can match."""
        after = set()
        for i in state:
            if self._parts[i] == _ANY_DEPTH:
                if not is_link and not name.startswith("."):
                    after.add(i)
            elif self._matches(i, name):
                after.add(i + 1)
        return self._closed(after)

    def takes(self, state: frozenset[int], name: str) -> bool:
        """Whether the last part of the pattern matches a file."""
        last = len(self._parts) - 1
        return last in state and self._matches(last, name)

    def _matches(self, i: int, name: str) -> bool:
        hidden = name.startswith(".") and not self._parts[i].startswith(".")
        return not hidden and self._forms[i].match(name) is not None

    def _closed(self, state: set[int]) -> frozenset[int]:
        """The state with the parts that follow a `**` added, because `**` may match no folder."""
        closed = {i for i in state if i < len(self._parts)}
        for i in range(len(self._parts) - 1):
            if i in closed and self._parts[i] == _ANY_DEPTH:
                closed.add(i + 1)
        return frozenset(closed)
