"""The ATP module in torch: attention received by image tokens -> two thresholds -> a mask.

Source: ATP-LLaVA (Ye et al., arXiv 2412.00447), its module figure and abstract; what its public
text leaves open is our reading and marked so. Arrays run over the rows of a sequence, (B, n), with
`live` (B, n): how alive each image token is, 1 or 0 where masks are hard, in between while they
are learned, and 0 on text rows and padding. With a hard `live` every function here equals the
C++ of the engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atp_cpp.train.spec import AtpSpec

SPATIAL_START = 2.3  # sigmoid of it is 0.91: rates 1/36 and sparser
ALIVE = 1e-4  # a token less alive than this takes no part in sorting


@dataclass(frozen=True)
class Decision:
    """What one module decided.

    Attributes:
        theta_r: (B,) threshold on the redundancy score, in (0, 1).
        theta_s: (B,) threshold on the spatial score, in (0, 1).
        red: (B, n) redundancy score, valid where alive.
        mask: (B, n) this module's mask on image tokens in [0, 1]; 1 on all other rows.
    """

    theta_r: Tensor
    theta_s: Tensor
    red: Tensor
    mask: Tensor


def normalise(s: Tensor, live: Tensor, kind: str) -> Tensor:
    """Scores (B, n) to a common scale per sample; our reading, since raw attention is about 1e-3.

    `relative` is s / (s + mean), so that a token of average attention scores 0.5; `minmax` maps
    to [0, 1]; both give 0.5 where scores cannot be told apart (mean 0, max = min).
    """
    if kind == "none":
        return s
    if kind == "relative":
        mean = (s * live).sum(1, keepdim=True) / live.sum(1, keepdim=True).clamp(min=1e-12)
        whole = s + mean
        return torch.where(mean > 0, s / whole.clamp(min=1e-30), torch.full_like(s, 0.5))
    alive = live > ALIVE
    low = s.masked_fill(~alive, torch.inf).amin(1, keepdim=True)
    high = s.masked_fill(~alive, -torch.inf).amax(1, keepdim=True)
    span = high - low
    return torch.where(span > 0, (s - low) / span.clamp(min=1e-30), torch.full_like(s, 0.5))


def features(s: Tensor, live: Tensor, n_bins: int) -> Tensor:
    """Normalised scores (B, n) -> (B, n_bins), whatever the number of live tokens; our reading.

    The live scores in descending order, resampled by linear interpolation. While masks are soft
    the order's first round(sum of `live`) entries stand for the live ones.
    """
    ordered = s.masked_fill(live <= ALIVE, -torch.inf).sort(dim=1, descending=True).values
    count = live.sum(1, keepdim=True).round().clamp(min=1).detach().double()  # (B, 1)
    count = count.minimum((live > ALIVE).sum(1, keepdim=True).clamp(min=1).double())
    step = torch.arange(n_bins, device=s.device, dtype=torch.float64) / (n_bins - 1)
    at = step * (count - 1)  # (B, n_bins)
    low = at.floor()
    high = (low + 1).minimum(count - 1)
    share = (at - low).to(s.dtype)
    below, above = ordered.gather(1, low.long()), ordered.gather(1, high.long())
    return below + (above - below) * share


def spatial_score(rows: int, cols: int, spec: AtpSpec) -> Tensor:
    """S_spa of every cell of a patch grid, (rows * cols,): 1 - lambda * R of its sparsest grid.

    The tiers are the paper's (module figure), the formula is second hand, centred offsets are our
    reading. A cell on no grid gets -inf: no threshold keeps it.
    """
    y = torch.arange(rows)[:, None]
    x = torch.arange(cols)[None, :]
    best = torch.full((rows, cols), -torch.inf)
    for stride in spec.strides:
        first_y, first_x = ((rows - 1) % stride) // 2, ((cols - 1) % stride) // 2
        on = (y >= first_y) & ((y - first_y) % stride == 0)
        on = on & (x >= first_x) & ((x - first_x) % stride == 0)
        score = torch.tensor(1 - spec.lambda_sample / stride**2)
        best = torch.where(on, best.maximum(score), best)
    return best.reshape(-1)


def top(red: Tensor, live: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The fixed-ratio ablation: keep the `count` (B,) best of the live scores (B, n).

    Returns:
        theta: (B,) half-way between the last score kept and the first one dropped.
        kept: (B, n) bool, `count` of each sample (all if fewer live); ties to the first.
    """
    alive = live > ALIVE
    order = red.masked_fill(~alive, -torch.inf).sort(dim=1, descending=True, stable=True)
    n_live = alive.sum(1, keepdim=True)
    last = count[:, None].minimum(n_live).clamp(min=1) - 1  # (B, 1)
    lowest = order.values.gather(1, last)
    best_lost = order.values.gather(1, (last + 1).clamp(max=red.shape[1] - 1))
    theta = torch.where(last + 1 < n_live, (lowest + best_lost) / 2, lowest - 1)
    place = torch.arange(red.shape[1], device=red.device).expand_as(red)
    kept = torch.zeros_like(alive).scatter(1, order.indices, place <= last)
    return theta[:, 0], kept & alive


class AtpModule(nn.Module):
    """One learned module: scores of the layer before it -> thresholds -> mask."""

    ACTIVATIONS = {"identity": nn.Identity, "relu": nn.ReLU, "silu": nn.SiLU}  # noqa: RUF012

    def __init__(self, spec: AtpSpec) -> None:
        super().__init__()
        self.spec = spec
        self.proj = nn.Linear(2 * spec.n_bins, spec.n_hidden)
        self.act = self.ACTIVATIONS[spec.activation]()
        self.theta_r = nn.Linear(spec.n_hidden, 1)
        self.theta_s = nn.Linear(spec.n_hidden, 1)
        for head in (self.theta_r, self.theta_s):
            nn.init.normal_(head.weight, std=0.1 * spec.n_hidden**-0.5)
        # start from attention alone above a thin grid: were both thresholds in the middle, the grid
        # would meet the budget before attention has learned what matters, and stay (seen)
        nn.init.zeros_(self.theta_r.bias)
        nn.init.constant_(self.theta_s.bias, SPATIAL_START)

    def thresholds(self, self_n: Tensor, cross_n: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised scores (B, n) -> theta_r, theta_s, (B,) each, in (0, 1).

        Concatenation, one linear layer, two heads: the paper's module figure. Width, activation
        and the features are our reading.
        """
        parts = [features(s, live, self.spec.n_bins) for s in (self_n, cross_n)]
        # not under autocast: bfloat16 knows no threshold between 0.500 and 0.504
        with torch.autocast(self_n.device.type, enabled=False):
            z = self.act(self.proj(torch.cat(parts, dim=1).to(self.proj.weight.dtype)))
            return torch.sigmoid(self.theta_r(z))[:, 0], torch.sigmoid(self.theta_s(z))[:, 0]

    def forward(
        self,
        s_self: Tensor,
        s_cross: Tensor,
        spa: Tensor,
        live: Tensor,
        owner: Tensor,
        *,
        temperature: float | None,
        straight: bool = False,
        count: Tensor | None = None,
    ) -> Decision:
        """The mask of one module.

        Args:
            s_self: (B, n) mean attention received from image rows.
            s_cross: (B, n) mean attention received from question rows.
            spa: (B, n) spatial score, -inf off every grid.
            live: (B, n) how alive image tokens are before this module.
            owner: (B, n) image an image token belongs to, -1 on other rows.
            temperature: T of the soft mask sigmoid((score - theta) * T); None for the hard rule.
            straight: hard mask forward, the soft one's gradient backward (our reading).
            count: (B,) tokens to keep instead of asking the thresholds: see ``top``.
        """
        spec = self.spec
        self_n = normalise(s_self, live, spec.score_norm)
        cross_n = normalise(s_cross, live, spec.score_norm)
        theta_r, theta_s = self.thresholds(self_n, cross_n, live)
        red = {"avg": (self_n + cross_n) / 2, "self": self_n, "cross": cross_n}[spec.score]
        kept = None
        if count is not None:
            theta_r, kept = top(red, live, count)
        parts = []
        if spec.rule != "spatial":
            parts.append(red - theta_r[:, None])
        if spec.rule != "redundant":
            parts.append(spa - theta_s[:, None])
        margin = torch.stack(parts).amax(0)  # (B, n)
        margin = margin.masked_fill(live <= ALIVE, -torch.inf)
        hard = (margin > 0 if kept is None else kept).to(red.dtype)
        if temperature is None:
            mask = hard
        else:
            # max of sigmoids = sigmoid of the max, and off every grid it is 0
            mask = torch.sigmoid(margin * temperature)
            if straight:
                mask = hard + mask - mask.detach()
        mask = self._guard(mask, margin, hard > 0, owner)
        return Decision(theta_r, theta_s, red, torch.where(owner >= 0, mask, torch.ones_like(mask)))

    @staticmethod
    def _guard(mask: Tensor, margin: Tensor, kept: Tensor, owner: Tensor) -> Tensor:
        """At least one token of each image lives on: the one nearest to being kept (our rule)."""
        for image in range(int(owner.max()) + 1):
            mine = owner == image
            lost = mine.any(1) & ~(kept & mine).any(1)
            inside = margin.masked_fill(~mine, -torch.inf)
            # the first of the best; all are -inf where no grid holds any
            first = (mine & (inside == inside.amax(1, keepdim=True))).int().argmax(1, keepdim=True)
            spot = torch.zeros_like(mine).scatter(1, first, True) & lost[:, None]
            mask = torch.where(spot, mask + (1 - mask).detach(), mask)
        return mask
