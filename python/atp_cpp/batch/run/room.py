"""Bytes -> cells: how large each stage's cache is made, so that as many captions as asked for fit.

A caption takes cells in every stage: one for each row that is alive there, and one for each token
that the answer may still get. With a fixed share the number is known beforehand. How much the
policy atp keeps is learnt from the captions that end; before that, the upper bound counts.

The rule for k captions: room for k - 1 captions of mean size and one of the largest size. k is the
number of captions asked for, or the largest number that the budget allows.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import psutil

from atp_cpp._core import Engine
from atp_cpp._core import Sequence as EncodedPrompt
from atp_cpp.errors import AtpError, StageError

_GAIN = 1.25  # caches are divided anew when this many times as many captions would fit
_MEMORY = 64  # the mean is over about this many captions
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


_log = logging.getLogger(__name__)


def parse_size(text: str) -> int:
    """Reads a number of bytes: "2G", "512M", "1.5GiB", "1000000".

    Raises:
        AtpError: the text is no number of bytes, or the number is below 1.
    """
    match = _SIZE.fullmatch(text.strip())
    n = int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " ")) if match else 0
    if n < 1:
        raise AtpError(f"{text!r}: expected a size in bytes, such as 512M or 2G")
    return n


def default_budget() -> int:
    """Half of the main memory that is free now. The memory of an accelerator does not count."""
    return int(psutil.virtual_memory().available) // 2


class Room:
    """The sizes of the caches, and what is known of the size of captions.

    Args:
        engine: the engine that owns the caches.
        n_parallel: number of captions to make room for.
        budget: bytes that all caches may take together.
    """

    def __init__(self, engine: Engine, *, n_parallel: int, budget: int) -> None:
        self._engine, self._n_parallel, self._budget = engine, n_parallel, budget
        self._cells: list[int] = []  # reserved cells of each stage; empty before the first job
        self._mean: list[float] = []  # mean cells of a caption, of each stage
        self._largest: list[int] = []
        self._lacks: tuple[int, int] | None = None  # a caption waits for these cells in this stage
        self._used = False  # a caption was started in these caches
        self._n_seen = 0
        self._look_at = max(8, n_parallel)  # number of captions at which `better` is computed again
        self.better = False  # divide() would let more captions fit

    @property
    def n_cells(self) -> list[int]:
        """Reserved cells of each stage."""
        return list(self._cells)

    def open(self, sequence: EncodedPrompt, n_predict: int) -> None:
        """Makes the caches when the first job is known; later calls do nothing.

        Raises:
            StageError: the budget, or the memory, is too small for even one caption.
        """
        if self._cells:
            return
        expected = list(self._engine.expect(sequence, n_predict))
        if not self._make([float(n) for n in expected], expected):
            cells = self._share(self._budget, expected)
            if self._cost(cells) > self._budget:
                raise self._too_small(expected)
            self._reserve(cells)

    def learn(self, n_cells: Sequence[int]) -> None:
        """Notes how many cells a caption really took."""
        self._used = True
        self._n_seen += 1
        if self._n_seen == 1:
            self._mean, self._largest = [float(n) for n in n_cells], list(n_cells)
        weight = 1 / min(self._n_seen, _MEMORY)
        self._mean = [m + weight * (n - m) for m, n in zip(self._mean, n_cells, strict=True)]
        self._largest = [max(a, b) for a, b in zip(self._largest, n_cells, strict=True)]
        if self._n_seen == self._look_at:
            self._look_at *= 2
            best = self._for_captions(self._mean, self._largest)
            self.better = best != [] and self._holds(best) >= _GAIN * self._holds(self._cells)

    def refuse(self, n_cells: Sequence[int]) -> None:
        """Notes how many cells a caption needs that found no room.

        The numbers are exact up to the first stage without room.
        """
        free = self._engine.free_cells()
        lacks = [(s, n) for s, n in enumerate(n_cells) if n > free[s]]
        self._lacks = lacks[0] if lacks else None

    def may_fit(self) -> bool:
        """Whether another try of the refused caption can succeed.

        A try that fails costs the computation of the stages that have room.
        """
        return self._lacks is None or self._engine.free_cells()[self._lacks[0]] >= self._lacks[1]

    def divide(self) -> None:
        """Makes the caches anew, for the learnt sizes; no caption may be under way."""
        self.better = False
        self._make(self._mean, self._largest)

    def grow(self, n_cells: Sequence[int]) -> None:
        """Makes the empty caches large enough for a caption that did not fit into them.

        Args:
            n_cells: cells that the caption takes in each stage. The numbers are exact up to the
                first stage that was too small. The later numbers are upper bounds, so the later
                stages may get fewer cells, and the caller may have to call again.

        Raises:
            StageError: the budget is too small for the caption.
        """
        need = [self._rounded(n) for n in n_cells]
        fits = [a <= b for a, b in zip(need, self._cells, strict=True)]
        if all(fits):
            if not self._used:
                raise StageError(f"no room for {list(n_cells)} cells in caches of {self._cells}")
            self._reserve(self._cells)  # frees the cells of the text that captions share
            return
        n_known = fits.index(False) + 1
        rest, left = need[n_known:], self._budget - self._cost(need[:n_known])
        if self._cost(rest, n_known) > left:
            need[n_known:] = self._share(left, rest, n_known)
        if self._cost(need) > self._budget:
            raise self._too_small(n_cells)
        larger = [max(a, b) for a, b in zip(need, self._cells, strict=True)]
        self._reserve(larger if self._cost(larger) <= self._budget else need)

    def _make(self, mean: Sequence[float], largest: Sequence[int]) -> bool:
        """Reserves caches for as many captions as budget and memory allow; False: not for one."""
        while cells := self._for_captions(mean, largest):
            try:
                self._reserve(cells)
                return True
            except StageError as error:
                self._budget = self._cost(cells) // 2
                _log.warning("%s; going on with caches of %s", error, _text(self._budget))
        return False

    def _for_captions(self, mean: Sequence[float], largest: Sequence[int]) -> list[int]:
        """Cells for as many captions as the budget allows; empty if no caption fits."""
        for k in range(self._n_parallel, 0, -1):
            cells = [self._rounded((k - 1) * m + n) for m, n in zip(mean, largest, strict=True)]
            if self._cost(cells) <= self._budget:
                return cells
        return []

    def _holds(self, cells: Sequence[int]) -> float:
        """How many captions of the learnt sizes fit into caches of these sizes."""
        each = zip(cells, self._mean, self._largest, strict=True)
        return min(self._n_parallel, *(1 + (n - largest) / mean for n, mean, largest in each))

    def _share(self, n_bytes: int, wanted: Sequence[int], first: int = 0) -> list[int]:
        """Cells of the stages from `first` on that fit into `n_bytes`.

        Each stage gets one step of cells. The rest of the bytes is divided in proportion to
        `wanted`.
        """
        step = self._engine.cell_step
        least = self._cost([step] * len(wanted), first)
        part = (n_bytes - least) / max(1, self._cost(wanted, first) - least)
        part = min(1.0, max(0.0, part))
        return [step + max(0, int((n - step) * part)) // step * step for n in wanted]

    def _cost(self, cells: Sequence[int], first: int = 0) -> int:
        """Bytes of caches of these sizes, in the stages from `first` on."""
        sizes = self._engine.cell_bytes()[first:]
        return sum(n * size for n, size in zip(cells, sizes, strict=False))

    def _rounded(self, n: float) -> int:
        step = self._engine.cell_step
        return max(1, -(-round(n) // step)) * step

    def _reserve(self, cells: list[int]) -> None:
        self._cells, self._used = [], False  # after a failure there are no caches
        self._engine.reserve(cells, self._n_parallel)
        self._cells = cells

    def _too_small(self, n_cells: Sequence[int]) -> StageError:
        need = self._cost([self._rounded(n) for n in n_cells])
        return StageError(
            f"expected a caption whose caches fit into the budget of {_text(self._budget)}, got "
            f"one that needs up to {_text(need)}; raise --kv-budget, or lower -n or --ctx-size"
        )


def _text(n: int) -> str:
    return f"{n / 2**20:.1f} MiB" if n >= 2**20 else f"{n} bytes"
