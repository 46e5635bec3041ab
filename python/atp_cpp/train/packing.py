"""Questions about one image share the rows before them, up to the first cut.

Rows that precede a question cannot see it, so until tokens are dropped for one question's sake the
image's rows are the same for all questions about it.  A batch of B samples of n rows is laid out as
G groups of one shared opening (P rows: text before, image) and Q slots of T rows, a question with
its answer each:

    group g:  opening | slot 0 | slot 1 | ... | slot Q-1      P + Q * T rows

A slot sees the opening and itself. Samples that share nothing form groups of their own: P = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the rows of samples lie in the groups.

    Attributes:
        group: (B,) the group of a sample.
        slot: (B,) its slot there.
        place: (B, n) row of the group that holds a row of the sample.
        shape: G groups, of how many rows.
        opening: P.
        slot_rows: T.
    """

    group: Tensor
    slot: Tensor
    place: Tensor
    shape: tuple[int, int]
    opening: int
    slot_rows: int

    def pack(self, values: Tensor, fill: float = 0) -> Tensor:
        """(B, n, …) per sample -> (G, rows, …); shared rows are taken from any of their samples."""
        out = values.new_full((*self.shape, *values.shape[2:]), fill)
        out[self.group[:, None].expand_as(self.place), self.place] = values
        return out

    def unpack(self, values: Tensor, rows: Tensor) -> Tensor:
        """(G, rows, …) -> (B, m, …): of each sample the rows `rows` (B, m)."""
        at = self.group[:, None] * self.shape[1] + self.place.gather(1, rows)
        return values.flatten(0, 1)[at]

    def bias(self, dtype: torch.dtype) -> Tensor:
        """(1, 1, rows, rows): 0 where a row may look, a large negative number where not."""
        n, device = self.shape[1], self.place.device
        number = torch.arange(n, device=device)
        part = torch.where(number < self.opening, -1, (number - self.opening) // self.slot_rows)
        sees = (part[None, :] == -1) | (part[None, :] == part[:, None])
        sees = sees & (number[None, :] <= number[:, None])
        hidden = torch.full((n, n), -1e4, dtype=dtype, device=device)
        return hidden.masked_fill(sees, 0)[None, None]

    def received(self, probs: Tensor, live: Tensor, asks: Tensor) -> Tensor:
        """Attention (G, H, rows, rows) -> (B, 2, n): received from image rows and from questions.

        `live` and `asks` (B, n) weigh the rows that look; sums over these, means over heads.
        """
        looks = [self.pack(live)]
        for slot in range(int(self.slot.max()) + 1):
            mine = (self.slot == slot)[:, None]
            looks.append(self.pack_added(asks * mine))
        weights = torch.stack(looks, dim=1)[:, None].to(probs.dtype)  # (G, 1, 1 + Q, rows)
        sums = torch.matmul(weights, probs).float().mean(1)  # (G, 1 + Q, rows)
        of_images = sums[self.group, 0].gather(1, self.place)
        of_questions = sums[self.group, 1 + self.slot].gather(1, self.place)
        return torch.stack([of_images, of_questions], dim=1)

    def pack_added(self, values: Tensor) -> Tensor:
        """Like pack, (B, n) -> (G, rows), but rows that several samples share add up."""
        at = self.group[:, None] * self.shape[1] + self.place
        out = values.new_zeros(self.shape[0] * self.shape[1])
        return out.index_add(0, at.flatten(), values.flatten()).view(self.shape)


def pack_samples(input_ids: Tensor, is_image: Tensor, image_of: Tensor) -> Packing:
    """How a batch is laid out: samples with one image and one opening share a group.

    Args:
        input_ids: (B, n).
        is_image: (B, n).
        image_of: (B,) number of the image (or of the images) each sample sees.
    """
    b, n = input_ids.shape
    device = input_ids.device
    number = torch.arange(n, device=device)
    ends = torch.where(is_image, number + 1, 0).amax(1)
    opening = int(ends[0])
    _, first = _first_of_each(image_of)
    shared = bool((ends == opening).all()) and bool(
        (input_ids[:, :opening] == input_ids[first][:, :opening]).all()
    )
    if not shared:
        place = number.expand(b, n)
        everyone = torch.arange(b, device=device)
        return Packing(everyone, torch.zeros_like(everyone), place, (b, n), 0, n)
    group, _ = _first_of_each(image_of)
    slot = torch.stack([(group[:i] == group[i]).sum() for i in range(b)])
    rows = n - opening
    place = torch.where(number < opening, number, number + slot[:, None] * rows)
    size = opening + (int(slot.max()) + 1) * rows
    return Packing(group, slot, place, (int(group.max()) + 1, size), opening, rows)


def _first_of_each(image_of: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) numbers -> (B,) counted from 0 without gaps, and (B,) the first sample of each."""
    _, group = torch.unique(image_of, return_inverse=True)
    first = (group[:, None] == group[None, :]).int().argmax(1)
    return group, first
