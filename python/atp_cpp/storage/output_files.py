"""Checks before a run: an output must not be an input, nor replace a file of another program."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from atp_cpp.errors import AtpError

__all__ = ["check_no_input", "check_replaces", "is_json_report", "is_parquet"]

_HEAD = 4096  # bytes that tell what a file is


def check_no_input(
    option: str, output: str | None, inputs: Iterable[str | os.PathLike[str] | None]
) -> None:
    """Raises AtpError if `output` is one of the files that are read, by whatever name.

    Args:
        option: what the message calls the output, "--out".
        output: the file to write; None for none.
        inputs: files that are read; None, and what is no file, are passed over.
    """
    if output is None:
        return
    for path in inputs:
        if path is not None and _is_same(output, os.fspath(path)):
            raise AtpError(
                f"{option} {output}: this file is an input ({os.fspath(path)}) and would be "
                "overwritten; name another file"
            )


def check_replaces(
    option: str,
    output: str | None,
    *,
    force: bool,
    is_ours: Callable[[bytes], bool] = lambda head: False,
) -> None:
    """Raises AtpError if the file exists, unless `force` is set or the file is of our own kind.

    Args:
        option: what the message calls the output.
        output: the file to write; None for none.
        force: whether any file may be replaced.
        is_ours: a function: first bytes of a file -> whether it may be replaced without asking.
    """
    if output is None or force or not os.path.isfile(output):
        return
    try:
        with Path(output).open("rb") as stream:
            ours = is_ours(stream.read(_HEAD))
    except OSError:
        ours = False
    if not ours:
        raise AtpError(
            f"{option} {output}: this file is there already; name another one, or replace it "
            "with --force"
        )


def is_parquet(head: bytes) -> bool:
    """Whether a file that begins so is a Parquet table, or empty."""
    return head[:4] in (b"PAR1", b"")


def is_json_report(head: bytes) -> bool:
    """Whether a file that begins so is what ``atp-cpp eval --out`` writes."""
    return b"".join(head.split()).startswith(b'{"provenance":')


def _is_same(a: str, b: str) -> bool:
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):  # one of them is not there
        return os.path.realpath(a) == os.path.realpath(b)
