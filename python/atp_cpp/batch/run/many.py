"""``Captioner.caption_many``: checks the arguments, turns images into items, starts the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

import numpy as np
from PIL import Image

from atp_cpp.batch.load.loading import N_THREADS
from atp_cpp.batch.run.embeddings import EmbeddingCache
from atp_cpp.batch.run.pipeline import BatchOptions, CaptionRun, OnError
from atp_cpp.batch.run.room import default_budget, parse_size
from atp_cpp.batch.source.item import Item
from atp_cpp.errors import AtpError
from atp_cpp.images.load import ImageSource, in_memory, is_open_file, source_name
from atp_cpp.options.texts import check_whole
from atp_cpp.session import Session

MAX_BATCH = 255  # llama.cpp's limit, less the sequence that holds the shared text

_log = logging.getLogger(__name__)


def items_from(images: Iterable[ImageSource | Item], prompts: tuple[str, ...]) -> Iterator[Item]:
    """Items stay as they are; any other image becomes an Item, named by its path or its number."""
    for number, image in enumerate(images):
        if isinstance(image, Item):
            yield image
            continue
        try:
            name = source_name(image)
            is_path = isinstance(image, (str, os.PathLike))
            image = in_memory(image, name)  # now: the caller may close or change it later
        except AtpError as error:
            yield Item(str(number), type(image).__name__, image, prompts, str(error))
            continue
        yield Item(name if is_path else str(number), name, image, prompts)


def start_run(
    session: Session,
    images: Iterable[ImageSource | Item],
    prompt: str | Sequence[str],
    *,
    batch_size: int,
    kv_budget: int | str | None,
    embeddings: str | os.PathLike[str] | EmbeddingCache | None,
    n_load_threads: int | None,
    on_error: OnError,
    **others: Any,
) -> CaptionRun:
    """The body of ``Captioner.caption_many``, with its arguments.

    Raises:
        AtpError: an argument has a value that cannot be used.
    """
    if not isinstance(prompt, (str, Sequence)):
        raise AtpError(f"prompt: expected a text or several, got {type(prompt).__name__}")
    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    if _is_one(images):
        raise AtpError("expected several images, got one; put it into a list, or use caption")
    if not isinstance(images, Iterable):
        raise AtpError(f"expected several images, got {type(images).__name__}")
    if isinstance(kv_budget, str):
        kv_budget = parse_size(kv_budget)
    if n_load_threads is None:
        n_load_threads = N_THREADS
    _check_numbers(batch_size=(batch_size, 1), n_load_threads=(n_load_threads, 0),
                   kv_budget=(1 if kv_budget is None else kv_budget, 1))  # fmt: skip
    if batch_size > MAX_BATCH:
        raise AtpError(f"batch_size must be at most {MAX_BATCH}, got {batch_size}")
    if on_error not in get_args(OnError):
        raise AtpError(f"on_error is record or stop, got {on_error!r}")
    if not prompts:
        raise AtpError("expected at least one prompt, got an empty list")
    for text in prompts:
        session.render(text)
    if batch_size > 1 and not session.info.can_batch:
        _log.warning("%s: this kind of model makes one caption at a time", session.model.name)
        batch_size = 1
    if embeddings is not None and not isinstance(embeddings, EmbeddingCache):
        embeddings = EmbeddingCache(embeddings)
    options = BatchOptions(
        batch_size=batch_size,
        kv_budget=default_budget() if kv_budget is None else kv_budget,
        embeddings=embeddings,
        n_load_threads=n_load_threads,
        on_error=on_error,
        **others,
    )
    return CaptionRun(session, items_from(images, prompts), options)


def _check_numbers(**given: tuple[int, int]) -> None:
    """Raises AtpError unless each is at least its minimum."""
    for name, (number, least) in given.items():
        check_whole(name, number)
        if number < least:
            raise AtpError(f"{name} must be at least {least}, got {number}")


def _is_one(images: object) -> bool:
    """Whether this is a single image, passed by mistake where several images are expected."""
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    kinds = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, Item)
    return isinstance(images, kinds) or is_open_file(images)
