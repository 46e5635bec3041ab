"""What describes ATP modules besides their weights; the sidecar holds the same fields."""

from __future__ import annotations

from dataclasses import dataclass

STRIDES = (2, 3, 4, 6, 8, 12)
REFERENCE_CUTS = (4, 14, 24)  # of LLaVA-1.5-7B's 32 layers
REFERENCE_DEPTH = 32


@dataclass(frozen=True)
class AtpSpec:
    """Shape and rules of the modules of one model.

    Attributes:
        cuts: layer counts after which a module stands, ascending.
        score_norm: none, relative or minmax.
        divisor: rows_visible or rows_all, what S_self is divided by.
        score: avg, self or cross, what is held against theta_r.
        rule: union, redundant or spatial, which thresholds can keep a token.
        strides: of the uniform grids; the sampling rate of one is 1 / stride^2.
        lambda_sample: of the spatial score.
        n_bins: features taken from each score's distribution.
        n_hidden: width between the linear layer and the heads.
        activation: identity, relu or silu.
        fixed: share of the image tokens to keep after each cut, the same for every question: the
            ablation without learned thresholds, for training alone; () everywhere else.
    """

    cuts: tuple[int, ...]
    score_norm: str = "relative"
    divisor: str = "rows_visible"
    score: str = "avg"
    rule: str = "union"
    strides: tuple[int, ...] = STRIDES
    lambda_sample: float = 3.0
    n_bins: int = 64
    n_hidden: int = 64
    activation: str = "silu"
    fixed: tuple[float, ...] = ()


def default_cuts(n_layer: int) -> tuple[int, ...]:
    """The reference's cuts scaled to another depth, each at least one layer after the last.

    For 32 layers 4, 14, 24; otherwise rounded, our rule.
    """
    cuts: list[int] = []
    for cut in REFERENCE_CUTS:
        at = max(1, round(cut * n_layer / REFERENCE_DEPTH), *(c + 1 for c in cuts))
        if at < n_layer:
            cuts.append(at)
    return tuple(cuts)
