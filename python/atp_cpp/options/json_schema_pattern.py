r"""A schema's pattern, rewritten so that every match can be part of a JSON string without escapes.

llama.cpp's converter puts a pattern between two quotes: ``.`` or ``[^a]`` would then also match a
quote or a line break. Here each character and class becomes a list of ranges without quotes and
line breaks, and ``\d``, ``\w``, ``\s`` become the ranges that they stand for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

Range: TypeAlias = tuple[int, int]  # first and last code point

_LAST = 0x10FFFF
_UNSAFE = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F))  # controls, quote, backslash
_DIGIT = ((0x30, 0x39),)
_WORD = (*_DIGIT, (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE = ((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x2028, 0x2029), (0x3000, 0x3000))
_SETS = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_HEX = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})")
_REPEAT = re.compile(r"[*+?]|\{\d+(,\d*)?\}")
_MAX_GROUPS = 50  # nested groups


def inside_a_string(pattern: str) -> str:
    """The pattern for the converter: anchors, groups, choices, repetitions and ranges only.

    Raises:
        ValueError: the pattern has a part that a grammar cannot express; the text names the part.
    """
    return _Pattern(pattern).rewrite()


class _Pattern:
    def __init__(self, pattern: str) -> None:
        if len(pattern) < 2 or pattern[0] != "^" or not _ends(pattern):
            raise ValueError("is enforced only from ^ to $, as the whole text; write both")
        self._text = pattern[1:-1]
        self._at = 0

    def rewrite(self) -> str:
        out, depth = ["^"], 0
        repeatable = False
        while self._at < len(self._text):
            char = self._text[self._at]
            repeat = _REPEAT.match(self._text, self._at)
            if repeat:
                if not repeatable:
                    raise ValueError(f"there is nothing for {repeat[0]} to repeat")
                out.append(repeat[0])
                self._at = repeat.end() + self._text.startswith("?", repeat.end())  # lazy or not
                repeatable = False
                continue
            self._at += 1
            repeatable = char not in "(|"
            if char == "(":
                depth += 1
                self._group()
                out.append(char)
            elif char in ")|":
                depth -= char == ")"
                out.append(char)
            elif char in "^${}":
                raise ValueError(f"{char} in its middle is not supported")
            else:
                out.append(_written(self._member(char)))
            if not 0 <= depth <= _MAX_GROUPS:
                raise ValueError("its brackets do not fit, or are too deep")
        if depth:
            raise ValueError("a bracket stays open")
        return "".join([*out, "$"])

    def _group(self) -> None:
        if self._text.startswith("?", self._at):
            if not self._text.startswith("?:", self._at):
                raise ValueError("(?… other than (?:…) is not supported")
            self._at += 2

    def _member(self, char: str) -> list[Range]:
        if char == ".":
            return _without(_UNSAFE)
        if char == "[":
            return self._class()
        if char == "\\":
            return self._escape()
        return [(ord(char), ord(char))]

    def _escape(self) -> list[Range]:
        if match := _HEX.match(self._text, self._at):
            self._at = match.end()
            code = int(match[1] or match[2], 16)
            return [(code, code)]
        char = self._text[self._at : self._at + 1]
        self._at += 1
        if char.lower() in _SETS and char:
            members = _SETS[char.lower()]
            return list(members) if char.islower() else _without(members)
        if not char or char.isalnum():
            raise ValueError(f"the escape \\{char} is not supported")
        return [(ord(char), ord(char))]

    def _class(self) -> list[Range]:
        negated = self._text.startswith("^", self._at)
        self._at += negated
        members: list[Range] = []
        while (char := self._text[self._at : self._at + 1]) != "]":
            if not char:
                raise ValueError("a class […] stays open")
            first = self._class_member()
            follows = self._text[self._at + 1 : self._at + 2]
            if self._text.startswith("-", self._at) and follows not in ("]", ""):
                self._at += 1
                last = self._class_member()
                if len(first) != 1 or len(last) != 1 or first[0][0] > last[0][1]:
                    raise ValueError("a range in […] has no first and last character")
                first = [(first[0][0], last[0][1])]
            members += first
        self._at += 1
        return _without(members) if negated else members

    def _class_member(self) -> list[Range]:
        char = self._text[self._at]
        self._at += 1
        return self._escape() if char == "\\" else [(ord(char), ord(char))]


def _ends(pattern: str) -> bool:
    """Whether the last character of the pattern is a $ that is not escaped."""
    before = pattern[:-1]
    return pattern[-1] == "$" and (len(before) - len(before.rstrip("\\"))) % 2 == 0


def _without(members: Iterable[Range]) -> list[Range]:
    """All code points that are not in these ranges."""
    rest, at = [], 0
    for first, last in sorted(members):
        if first > at:
            rest.append((at, first - 1))
        at = max(at, last + 1)
    return [*rest, (at, _LAST)] if at <= _LAST else rest


def _written(members: Sequence[Range]) -> str:
    safe = _without([*_without(members), *_UNSAFE])
    if not safe:
        raise ValueError("a quote, backslash or control character cannot stand in it")
    return "[" + "".join(f"\\U{first:08X}-\\U{last:08X}" for first, last in safe) + "]"
