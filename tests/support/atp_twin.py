"""One ATP module once more, in NumPy and plain Python, written from its definition.

``docs/guide/policies.md`` has the formulas. Arrays run over the live image tokens of all images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from atp_cpp.sidecar.sidecar import AtpSidecar

Doubles = NDArray[np.float64]


def cells(live: Sequence[int], grids: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(image, y, x) of each live token."""
    where = [(im, *divmod(i, c)) for im, (r, c) in enumerate(grids) for i in range(r * c)]
    return [where[i] for i in live]


def rows_that_see(image: NDArray[np.int64], causal: bool) -> Doubles:
    """How many live image rows see each token: the sum of a visibility matrix, row by row."""
    n = len(image)
    later = np.tri(n, dtype=bool)  # [row, column]: the row comes at or after the column
    same = image[:, None] == image[None, :]
    return (later | (same & (not causal))).sum(axis=0).astype(float)


def normalised(s: Doubles, norm: str) -> Doubles:
    """Scores on the scale of the thresholds."""
    if norm == "none":
        return s
    if norm == "relative":
        return np.full_like(s, 0.5) if s.mean() == 0 else s / (s + s.mean())
    low, high = s.min(), s.max()
    return np.full_like(s, 0.5) if low == high else (s - low) / (high - low)


def features(s: Doubles, n_bins: int) -> Doubles:
    """`n_bins` points of the scores in descending order."""
    at = np.linspace(0.0, len(s) - 1, n_bins)
    return np.interp(at, np.arange(len(s)), np.sort(s)[::-1])


def thresholds(
    sidecar: AtpSidecar, module: int, self_n: Doubles, cross_n: Doubles
) -> tuple[float, float]:
    """theta_r and theta_s of one module."""
    blk = f"blk.{sidecar.cuts[module] - 1}.atp_"
    part = {name: array.astype(np.float64) for name, array in sidecar.tensors.items()}
    x = np.concatenate([features(self_n, sidecar.n_bins), features(cross_n, sidecar.n_bins)])
    z = part[blk + "proj.weight"] @ x + part[blk + "proj.bias"]
    if sidecar.activation == "relu":
        z = np.maximum(z, 0)
    elif sidecar.activation == "silu":
        z = z / (1 + np.exp(-z))
    logit = [part[f"{blk}theta_{t}.weight"] @ z + part[f"{blk}theta_{t}.bias"] for t in "rs"]
    return tuple(float(1 / (1 + np.exp(-v[0]))) for v in logit)


def spatial_score(
    y: int, x: int, grid: tuple[int, int], strides: Sequence[int], lambda_sample: float
) -> float:
    """The best of the grids that hold the cell."""
    best = -math.inf
    for s in strides:
        ys = range((grid[0] - 1) % s // 2, grid[0], s)
        xs = range((grid[1] - 1) % s // 2, grid[1], s)
        if y in ys and x in xs:
            best = max(best, 1 - lambda_sample / s**2)
    return best


def budget_count(sidecar: AtpSidecar, module: int, rest: float, n_images: int, n_live: int) -> int:
    """Live tokens wanted after this module, when `rest` token-layers are left."""
    ends = [*sidecar.cuts[module + 1 :], sidecar.n_layer]
    spans = [b - a for a, b in zip(sidecar.cuts[module:], ends, strict=True)]
    if rest < n_images * sum(spans) - 1e-9:
        raise ValueError("too little is left for one token of each image")
    share = np.array(sidecar.kept[module:]) / sidecar.kept[module]
    n = rest / (spans * share).sum()
    n = min(n, (rest - n_images * sum(spans[1:])) / spans[0])  # later spans need one of each
    return min(max(math.floor(n + 1e-9), n_images), n_live)


def choose(
    sidecar: AtpSidecar,
    module: int,
    *,
    self_sum: Sequence[float],
    cross: Sequence[float],
    live: Sequence[int],
    grids: Sequence[tuple[int, int]],
    causal: bool = True,
    spent: float = 0.0,
    budget: float | int | None = None,
) -> dict[str, object]:
    """What one module keeps, as `_core.AtpWeights.run`: kept, spatial, thresholds."""
    where = cells(live, grids)
    image = np.array([im for im, _, _ in where])
    seen_by = rows_that_see(image, causal) if sidecar.divisor == "rows_visible" else len(live)
    self_n = normalised(np.array(self_sum, dtype=np.float64) / seen_by, sidecar.score_norm)
    cross_n = normalised(np.array(cross, dtype=np.float64), sidecar.score_norm)
    theta_r, theta_s = thresholds(sidecar, module, self_n, cross_n)
    red = {"avg": (self_n + cross_n) / 2, "self": self_n, "cross": cross_n}[sidecar.score]
    spa = np.array(
        [
            spatial_score(y, x, grids[im], sidecar.strides, sidecar.lambda_sample)
            for im, y, x in where
        ]
    )
    over_r = red - theta_r if sidecar.rule != "spatial" else np.full(len(red), -math.inf)
    over_s = spa - theta_s if sidecar.rule != "redundant" else np.full(len(red), -math.inf)
    margin = np.maximum(over_r, over_s)
    images = sorted(set(image.tolist()))
    if budget is None:
        offset = 0.0
        kept = set(np.flatnonzero(margin > 0).tolist())
        for im in images:
            mine = np.flatnonzero(image == im)
            if not kept & set(mine.tolist()):
                kept.add(int(mine[np.argmax(margin[mine])]))
        through_r, through_s = over_r > 0, over_s > 0
    else:
        n_tokens = sum(r * c for r, c in grids)
        total = (budget * n_tokens if isinstance(budget, float) else budget) * sidecar.n_layer
        n = budget_count(sidecar, module, total - spent, len(images), len(live))
        order = sorted(range(len(live)), key=lambda i: (-margin[i], -red[i], i))
        kept = {next(i for i in order if image[i] == im) for im in images}
        in_order = 0
        while len(kept) < n or order[in_order] in kept:
            kept.add(order[in_order])
            in_order += 1
            if in_order == len(order):
                break
        offset = -float(margin[order[in_order - 1]])
        through_r, through_s = over_r >= -offset, over_s >= -offset
    return {
        "kept": [live[i] for i in sorted(kept)],
        "spatial": [live[i] for i in sorted(kept) if through_s[i] and not through_r[i]],
        "thresholds": (theta_r, theta_s, offset),
    }
