"""One image to caption, before it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from atp_cpp.images.load import ImageSource

Source: TypeAlias = "ImageSource | Callable[[], bytes]"


@dataclass(frozen=True, slots=True)
class Item:
    """One image and what is asked about it; one row for each prompt.

    Attributes:
        custom_id: what a row is found again by, and what shards are made of. The path as it was
            written or found, "shard.tar/cat.jpg" in a tar, or what a JSONL line says.
        image: the image's name in rows and messages.
        source: where the pixels come from; a callable gives the encoded bytes when it is called,
            in a thread of its own.
        prompts: the questions.
        error: what is wrong with it, if that is known before it is opened; "" otherwise. It is
            never opened then.
    """

    custom_id: str
    image: str
    source: Source
    prompts: tuple[str, ...]
    error: str = ""
