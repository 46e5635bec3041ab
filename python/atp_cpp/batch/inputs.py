"""What a user names -> the images to caption, one after the other.

Everything is lazy: sorted names of one folder are held, never those of the whole set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from atp_cpp.batch.item import Item


def items_of(
    paths: Sequence[str],
    *,
    prompts: str | Sequence[str],
    recursive: bool = False,
    filelist: str | None = None,
    jsonl: str | None = None,
    shard: tuple[int, int] | None = None,
) -> Iterator[Item]:
    """The images of all inputs: of `paths` first, then of the list, then of the JSONL file.

    Args:
        paths: files, folders, patterns, tars.
        prompts: what to ask about each; a JSONL line may ask something else.
        recursive: folders with the folders in them.
        filelist: file with one name a line; "-" is stdin.
        jsonl: file with one JSON object a line; "-" is stdin.
        shard: (i, n) for part i of n, counted from 1.

    Raises:
        AtpError: nothing named, a folder without images, a pattern that matches nothing, a list
            that cannot be read. At once; but that a list names nothing is known only at its end.
    """
    raise NotImplementedError


def count_of(
    paths: Sequence[str],
    *,
    recursive: bool = False,
    filelist: str | None = None,
    jsonl: str | None = None,
    shard: tuple[int, int] | None = None,
) -> int | None:
    """How many items there will be; None where counting them would cost (tars) or eat them (stdin).

    Raises:
        AtpError: as items_of.
    """
    raise NotImplementedError
