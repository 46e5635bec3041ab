"""Batches to train on: several questions about each of a few images.

In: items (``atp_cpp.train.items``) and the checkpoint's processor. Out: an endless stream of
tensors. The stream depends on its seed alone, and its place can be saved and restored.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atp_cpp.errors import AtpError, ImageError
from atp_cpp.images.load import load_image
from atp_cpp.train.items import Item, Turn, load_items
from atp_cpp.train.prompting import Prompting, load_processor

__all__ = ["Batch", "Batches", "Item", "Turn", "load_items", "load_processor"]

NO_LABEL = -100
CACHED_IMAGES = 128  # 1.4 MB each at 336 x 336

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Samples: B questions about U images, n rows each.

    Attributes:
        pixel_values: (U, 3, H, W) float32, as the processor gives them.
        image_of: (B,) which image each sample sees.
        input_ids: (B, n), padded on the right, the image token repeated.
        attention_mask: (B, n), 0 on padding.
        labels: (B, n) the token itself on the answer and the token that ends it, else -100.
        prompt_len: (B,) rows before the answer's first token.
        kinds: of the B questions.
    """

    pixel_values: Tensor
    image_of: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    prompt_len: Tensor
    kinds: list[str]

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        names = ("pixel_values", "image_of", "input_ids", "attention_mask", "labels", "prompt_len")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True)
class Place:
    """A place in the stream: `position` items into pass `epoch` over all items."""

    epoch: int = 0
    position: int = 0


class Batches:
    """An endless stream of batches.

    Args:
        items: what to draw from.
        processor: of the checkpoint, see ``load_processor``.
        images_per_batch: items of a batch (all of them if there are fewer).
        questions_per_image: samples of an item, drawn anew in each pass; fewer if it has fewer.
        seed: of the order of items and the choice of questions.
        shuffle: False takes items and their first questions in the order of the file.

    Attributes:
        n_bad_images: how often an image could not be read; such items are passed over.

    Raises:
        AtpError: a question holds the image token, or not one image of a pass can be read.
    """

    def __init__(
        self,
        items: Sequence[Item],
        processor: Any,
        *,
        images_per_batch: int,
        questions_per_image: int,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        self.items, self.prompting = list(items), Prompting(processor)
        self.images_per_batch = min(images_per_batch, len(self.items))
        self.questions_per_image = questions_per_image
        self.seed, self.shuffle, self.n_bad_images = seed, shuffle, 0
        self._image_processor = processor.image_processor
        self._cache: OrderedDict[Path, Tensor] = OrderedDict()
        self._named: set[Path] = set()  # bad images that a warning has named
        self._orders: dict[int, np.ndarray[Any, np.dtype[np.int64]]] = {}
        self._place = Place()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="atp-batches")
        self._ahead: Future[tuple[Batch, Place]] | None = None
        self._refuse_image_tokens()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch; the one after it is prepared meanwhile in a thread."""
        ahead = self._ahead or self._pool.submit(self._make, self._place)
        batch, self._place = ahead.result()
        self._ahead = self._pool.submit(self._make, self._place)
        return batch

    def state_dict(self) -> dict[str, int]:
        """The place after the batch that was given last."""
        return {"epoch": self._place.epoch, "position": self._place.position, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on at a place that ``state_dict`` named.

        Raises:
            AtpError: it is of a stream with another seed.
        """
        if state["seed"] != self.seed:
            raise AtpError(f"expected the data's place for seed {self.seed}, got {state['seed']}")
        if self._ahead is not None:
            self._ahead.result()
            self._ahead = None
        self._place = Place(state["epoch"], state["position"])

    def close(self) -> None:
        """Ends the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def once(self) -> Iterator[Batch]:
        """Every item once, in the order of the file, with its first questions."""
        group: list[tuple[Tensor, list[Turn]]] = []
        for item in self.items:
            pixels = self._pixels(item.images[0])
            if pixels is not None:
                group.append((pixels, list(item.turns[: self.questions_per_image])))
            if len(group) == self.images_per_batch:
                yield self._collate(group)
                group = []
        if group:
            yield self._collate(group)

    def _make(self, place: Place) -> tuple[Batch, Place]:
        group: list[tuple[Tensor, list[Turn]]] = []
        missed = 0
        while len(group) < self.images_per_batch:
            if place.position >= len(self.items):
                place = Place(place.epoch + 1, 0)
            index = int(self._order(place.epoch)[place.position])
            item = self.items[index]
            pixels = self._pixels(item.images[0])
            if pixels is not None:
                group.append((pixels, self._questions(item, place.epoch, index)))
            else:
                missed += 1
            if missed >= max(len(self.items), 1) and not group:
                raise AtpError(
                    f"none of the {len(self.items)} images can be read, for instance "
                    f"{item.images[0]}; check --image-dir"
                )
            place = Place(place.epoch, place.position + 1)
        return self._collate(group), place

    def _order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        if epoch not in self._orders:
            n = len(self.items)
            rng = np.random.default_rng((self.seed, epoch))
            self._orders = {epoch: rng.permutation(n) if self.shuffle else np.arange(n)}
        return self._orders[epoch]

    def _questions(self, item: Item, epoch: int, index: int) -> list[Turn]:
        count = min(self.questions_per_image, len(item.turns))
        if not self.shuffle:
            return list(item.turns[:count])
        rng = np.random.default_rng((self.seed, epoch, index))
        return [item.turns[i] for i in rng.choice(len(item.turns), count, replace=False)]

    def _pixels(self, path: Path) -> Tensor | None:
        """(3, H, W), or None if the file is no image."""
        if path in self._cache:
            self._cache.move_to_end(path)
            return self._cache[path]
        try:
            image = Image.fromarray(load_image(path))
        except ImageError as error:
            self.n_bad_images += 1
            if path not in self._named:
                self._named.add(path)
                _log.warning("image left out: %s", error)
            return None
        out = self._image_processor(images=[image], return_tensors="pt")["pixel_values"]
        pixels: Tensor = out[0].float()
        self._cache[path] = pixels
        if len(self._cache) > CACHED_IMAGES:
            self._cache.popitem(last=False)
        return pixels

    def _collate(self, group: list[tuple[Tensor, list[Turn]]]) -> Batch:
        turns = [turn for _, asked in group for turn in asked]
        parts = [self.prompting.encode(turn.question, turn.answer) for turn in turns]
        heads = [self.prompting.repeat_image(head) for head, _ in parts]
        longest = max(len(h) + len(tail) for h, (_, tail) in zip(heads, parts, strict=True))
        ids = np.full((len(turns), longest), self.prompting.pad_id, np.int64)
        labels = np.full_like(ids, NO_LABEL)
        mask = np.zeros_like(ids)
        for row, (head, (_, tail)) in enumerate(zip(heads, parts, strict=True)):
            end = len(head) + len(tail)
            ids[row, : len(head)] = head
            ids[row, len(head) : end] = tail
            labels[row, len(head) : end] = tail
            mask[row, :end] = 1
        image_of = [number for number, (_, asked) in enumerate(group) for _ in asked]
        return Batch(
            torch.stack([pixels for pixels, _ in group]),
            torch.tensor(image_of),
            torch.from_numpy(ids),
            torch.from_numpy(mask),
            torch.from_numpy(labels),
            torch.tensor([len(head) for head in heads]),
            [turn.kind for turn in turns],
        )

    def _refuse_image_tokens(self) -> None:
        sign = self.prompting.image_token
        for item in self.items:
            for turn in item.turns:
                if sign in turn.question or sign in turn.answer:
                    raise AtpError(
                        f"{item.images[0]}: expected no {sign} in questions and answers, got "
                        f"{turn.question!r}, {turn.answer!r}; images are placed before the text"
                    )
