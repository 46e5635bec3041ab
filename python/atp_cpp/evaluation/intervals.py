"""Intervals of 95 %: of a share, and of a mean with a known standard error."""

from __future__ import annotations

import math

Z_95 = 1.96  # standard errors to either side that hold 95 % of a normal distribution


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a share that n independent trials gave (Wilson, 1927).

    Args:
        share: of the trials that succeeded, 0 to 1.
        n: number of trials, at least 1.
    """
    z2 = Z_95**2 / n
    middle = (share + z2 / 2) / (1 + z2)
    half = Z_95 / (1 + z2) * math.sqrt(share * (1 - share) / n + z2 / (4 * n))
    return middle - half, middle + half


def difference_text(mean: float, error: float) -> str:
    """A mean difference with its interval, "+1.2 [-0.1, +2.5]", from its standard error."""
    return f"{mean:+.1f} [{mean - Z_95 * error:+.1f}, {mean + Z_95 * error:+.1f}]"
