"""The policies once more, in NumPy and plain Python, written from their definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

WORD = (1 << 64) - 1


def quota(keep: float, n_tokens: int) -> int:
    """round(keep * n), halves up, at least one."""
    exact = keep * n_tokens
    low = math.floor(exact)
    return max(1, low + (exact - low >= 0.5))


def splitmix64(x: int) -> int:
    """One output of Steele, Lea and Flood's generator from state x."""
    z = (x + 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def bayer(size: int) -> np.ndarray:
    """Bayer's threshold matrix [size, size], ranks 0 .. size^2 - 1; size is a power of two."""
    matrix = np.zeros((1, 1), dtype=np.int64)
    while len(matrix) < size:
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return matrix


def choose(
    name: str,
    *,
    score: Sequence[float],
    live: Sequence[int],
    grids: Sequence[tuple[int, int]],
    keep: float,
    seed: int = 0,
) -> list[int]:
    """The keep list of policy `name` among the image tokens `live`, as `_core.run_policy`.

    Args:
        score: one number per live token (read by fastv only).
        live: indices among all image tokens, ascending.
        grids: rows and columns of each image.
        keep: fraction of each image's original tokens.
        seed: of `random`.
    """
    live_array = np.asarray(live, dtype=np.int64)
    if name == "none":
        return live_array.tolist()
    kept: list[int] = []
    first = 0
    for rows, cols in grids:
        at = np.flatnonzero((live_array >= first) & (live_array < first + rows * cols))
        index = live_array[at]
        if name == "random":
            base = splitmix64(seed)
            key = np.array([splitmix64(base ^ int(i)) for i in index], dtype=np.uint64)
        elif name == "grid":
            side = 1 << max(rows - 1, cols - 1, 1).bit_length()
            key = bayer(side)[tuple(np.divmod(index - first, cols))]
        else:
            key = -np.asarray(score, dtype=np.float32)[at]
        order = np.argsort(key, kind="stable")
        kept += index[order[: quota(keep, rows * cols)]].tolist()
        first += rows * cols
    return sorted(kept)
