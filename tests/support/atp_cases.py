"""Cases of policy atp drawn from a number: a sidecar, one of its modules, and the scores."""

import numpy as np

from support.random_sidecar import random_sidecar

NORMS = ("none", "relative", "minmax")


def random_case(seed):
    """A sidecar, a module of it, and what `run` takes: images pruned before, ties, zeros."""
    rng = np.random.default_rng([3, seed])
    sidecar = random_sidecar(
        seed,
        score_norm=str(rng.choice(NORMS)),
        divisor=str(rng.choice(["rows_visible", "rows_all"])),
        score=str(rng.choice(["avg", "self", "cross"])),
        rule=str(rng.choice(["union", "redundant", "spatial"], p=[0.6, 0.2, 0.2])),
        activation=str(rng.choice(["identity", "relu", "silu"])),
        strides=tuple(np.sort(rng.choice(range(1, 13), rng.integers(1, 7), replace=False))),
        lambda_sample=float(rng.choice([3.0, 0.5, 7.25])),
        n_bins=int(rng.choice([2, 16, 64])),
        n_hidden=int(rng.choice([1, 8])),
    )
    grids = [tuple(int(n) for n in rng.integers(1, 14, 2)) for _ in range(rng.integers(1, 5))]
    if seed % 9 == 0:
        grids = [(1, 1)] * len(grids)
    live, first = [], 0
    for rows, cols in grids:
        n_alive = int(rng.integers(1, rows * cols + 1)) if seed % 2 else rows * cols
        live += (first + np.sort(rng.choice(rows * cols, n_alive, replace=False))).tolist()
        first += rows * cols
    scores = rng.exponential(1 / len(live), (2, len(live)))
    if seed % 3 == 0:
        scores = np.round(scores * 3 * len(live)) / (3 * len(live))  # many ties, some zeros
    if seed % 7 == 0:
        scores[:] = 0.25  # nothing but ties
    if seed % 11 == 0:
        scores[seed % 2] = 0.0
    seen_by = len(live) * rng.random(len(live)) if seed % 5 else 1.0
    arguments = {
        "self_sum": (scores[0] * seen_by).tolist(),
        "cross": scores[1].tolist(),
        "live": live,
        "grids": grids,
        "causal": bool(rng.integers(2)),
    }
    return sidecar, int(rng.integers(len(sidecar.cuts))), arguments
