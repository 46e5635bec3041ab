"""One image to caption that is not opened yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from atp_cpp.images.load import ImageSource

Source: TypeAlias = "ImageSource | Callable[[], bytes]"


@dataclass(frozen=True, slots=True)
class Item:
    """One image and the questions about it; a run makes one row for each prompt.

    Attributes:
        custom_id: name by which rows are found again and shards are made. It is the path as written
            or found, "shard.tar/cat.jpg" for an image in a tar, or the id in a JSONL line.
        image: the image's name in rows and messages.
        source: where the pixels come from. A callable is called in a worker thread and returns the
            encoded bytes.
        prompts: the questions.
        error: an error that is known before the image is opened, or "". An item with an error is
            never opened.
    """

    custom_id: str
    image: str
    source: Source
    prompts: tuple[str, ...]
    error: str = ""
