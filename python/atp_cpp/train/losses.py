"""The losses of ATP training (atp.md's formula as restated from ATP-LLaVA, arXiv 2412.00447)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from atp_cpp.train.insert import AtpLlava, Pass


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


def target_loss(mean: Tensor, target: float, n_tokens: int) -> Tensor:
    """|mean over the batch of the layer-mean count - target| / N: images may differ, means not."""
    return (mean.mean() - target).abs() / n_tokens


def exact(llava: AtpLlava, hidden: Tensor, now: Pass, labels: Tensor) -> Tensor:
    """(B,) whether every answer token is the likeliest, which is what greedy decoding would say."""
    following = torch.full_like(labels, -100)
    following[:, :-1] = labels[:, 1:]
    target = following.gather(1, now.rows.index).masked_fill(~now.rows.there, -100)
    spots = target != -100
    wrong = torch.zeros_like(spots)
    wrong[spots] = llava.logits(hidden[spots]).argmax(-1) != target[spots]
    return ~wrong.any(1)
