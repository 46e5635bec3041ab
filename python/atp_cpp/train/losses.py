"""The losses of ATP training (atp.md's formula as restated from ATP-LLaVA, arXiv 2412.00447)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from atp_cpp.train.insert import AtpLlava, Pass
from atp_cpp.train.module import normalise


def answer_loss(llava: AtpLlava, hidden: Tensor, now: Pass, labels: Tensor) -> Tensor:
    """Next-token loss over the answers' tokens, each sample weighted alike by 1/sqrt(length).

    hidden (B, m, width) holds the rows `now.rows`; labels (B, n) of the full sequence, -100 off
    answers.
    """
    following = torch.full_like(labels, -100)
    following[:, :-1] = labels[:, 1:]
    target = following.gather(1, now.rows.index).masked_fill(~now.rows.there, -100)
    spots = target != -100
    logits = llava.logits(hidden[spots]).float()
    each = cross_entropy(logits, target[spots], reduction="none")
    weight = spots.sum(1, keepdim=True).clamp(min=1).rsqrt().expand_as(target)[spots]
    return (each * weight).sum() / weight.sum()


def mean_tokens(now: Pass, cuts: tuple[int, ...], n_layer: int, n_tokens: int) -> Tensor:
    """(B,) image tokens alive, averaged over all decoder layers: the paper's Table 1 measure."""
    ends = [*cuts[1:], n_layer]
    total = torch.full_like(now.counts[0], float(cuts[0] * n_tokens))
    for count, begin, end in zip(now.counts, cuts, ends, strict=True):
        total = total + count * (end - begin)
    return total / n_layer


def sparsity_loss(now: Pass, n_tokens: int) -> Tensor:
    """Sum over modules l = 1, 2, … of l * N_l / N, mean over the batch."""
    return torch.stack(
        [number * count.mean() / n_tokens for number, count in enumerate(now.counts, start=1)]
    ).sum()


RECALL = 0.7  # share of the past in the running mean of the counts
SLACK = 0.05  # distance to the target, as a fraction of N, from which the pull is full


def running_mean(before: float | None, mean: Tensor) -> float:
    """The running mean of layer-mean counts after a batch, `before` it (None at the start)."""
    now = float(mean.detach().mean())
    return now if before is None else RECALL * before + (1 - RECALL) * now


def target_loss(mean: Tensor, running: float, target: float, n_tokens: int) -> Tensor:
    """|running mean of the layer-mean count - target| / N, and a pull on this batch's counts.

    The restated loss takes the batch's mean. A batch of a few images would then hold every few
    images to the same count, and what is adaptive between images would be trained away (seen:
    the counts' correlation with the number of objects fell from 0.58 to 0.05). Our decision: the
    mean over the last batches says which way to pull and how hard, and all samples of this one are
    pulled alike. A longer memory swings about the target instead of meeting it (seen).
    `mean` is (B,), in tokens, as are `running` and `target`.
    """
    away = (running - target) / n_tokens
    pull = max(-1.0, min(1.0, away / SLACK))
    share = mean.mean() / n_tokens
    return abs(away) + pull * (share - share.detach())


def align_loss(llava: AtpLlava, now: Pass) -> Tensor:
    """How far the scores at each module are from what later layers attend to; our decision.

    A model that was never pruned has no reason to attend, in the layer before a module, to what it
    will need later: in the demo model S_self points away from objects. The target at a module is
    the normalised mean of S_cross over all later layers of the same pass, without gradient; the
    loss is the mean square distance of both normalised scores to it, summed over the modules.
    """
    assert now.looks is not None
    live, norm = now.rows.live, "relative"
    total = torch.zeros((), device=live.device)
    for cut in llava.spec.cuts:
        later = torch.stack([cross for _, cross in now.looks[cut:]]).mean(0).detach()
        aim = normalise(later, live, norm)
        for score in now.looks[cut - 1]:
            away = (normalise(score, live, norm) - aim).square() * live
            total = total + (away.sum(1) / live.sum(1)).mean()
    return total


def exact(llava: AtpLlava, hidden: Tensor, now: Pass, labels: Tensor) -> Tensor:
    """(B,) whether every answer token is the likeliest, which is what greedy decoding would say."""
    following = torch.full_like(labels, -100)
    following[:, :-1] = labels[:, 1:]
    target = following.gather(1, now.rows.index).masked_fill(~now.rows.there, -100)
    spots = target != -100
    wrong = torch.zeros_like(spots)
    wrong[spots] = llava.logits(hidden[spots]).argmax(-1) != target[spots]
    return ~wrong.any(1)
