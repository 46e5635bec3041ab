"""One batch through the model: the losses to train on, and the figures to watch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from atp_cpp.train.data import Batch
from atp_cpp.train.insert import AtpLlava, Pass
from atp_cpp.train.losses import (
    align_loss,
    answer_loss,
    exact,
    mean_tokens,
    running_mean,
    sparsity_loss,
    target_loss,
)
from atp_cpp.train.options import TrainOptions


@dataclass(frozen=True)
class StepLoss:
    """The loss of a batch and what it is made of.

    Attributes:
        total: scalar to differentiate.
        values: name -> number, for the curve.
    """

    total: Tensor
    values: dict[str, float]


@dataclass(frozen=True)
class Watched:
    """Figures of held-out questions under the hard rule.

    Attributes:
        accuracy: share of questions whose every answer token is the likeliest one.
        loss: of the answers.
        mean_tokens: live image tokens, mean over layers and questions.
        std_tokens: how much the mean over layers differs from question to question.
        kept: share of the image tokens alive after each cut.
        per_kind: accuracy of each kind of question.
    """

    accuracy: float
    loss: float
    mean_tokens: float
    std_tokens: float
    kept: tuple[float, ...]
    per_kind: dict[str, float]


def run_batch(
    llava: AtpLlava,
    batch: Batch,
    *,
    options: TrainOptions,
    temperature: float | None = None,
    straight: bool = False,
    look: bool = False,
) -> tuple[Tensor, Pass, Tensor]:
    """Hidden rows, the pass, and the loss of the answers (scalar); see ``AtpLlava.forward``."""
    with _precision(batch, options):
        images = llava.image_features(batch.pixel_values)
        hidden, now = llava(
            batch.input_ids,
            batch.attention_mask,
            batch.prompt_len,
            images,
            batch.image_of,
            temperature=temperature,
            straight=straight,
            drop_below=options.drop_below,
            look=look,
        )
        return hidden, now, answer_loss(llava, hidden, now, batch.labels)


def step_loss(
    llava: AtpLlava,
    batch: Batch,
    options: TrainOptions,
    progress: float,
    running: float | None = None,
) -> StepLoss:
    """The training loss: answers + lambda_atp * sparsity + lambda_target * distance to budget.

    In the run's first `align` share nothing is dropped: answers + lambda_align * alignment.
    """
    if progress < options.align:
        return _align(llava, batch, options)
    temperature, straight = options.mask(progress)
    _, now, answers = run_batch(
        llava, batch, temperature=temperature, straight=straight, options=options
    )
    n_layer, n_tokens = len(llava.language.layers), n_image_tokens(llava)
    mean = mean_tokens(now, llava.spec.cuts, n_layer, n_tokens)
    sparsity = sparsity_loss(now, n_tokens)
    running = running_mean(running, mean)
    target = target_loss(mean, running, options.target(progress) * n_tokens, n_tokens)
    total = answers + options.lambda_atp * sparsity + options.lambda_target * target
    shown = {
        "loss": total,
        "loss_answers": answers,
        "loss_sparsity": sparsity,
        "loss_target": target,
        "mean_tokens": mean.mean(),
    }
    for i, (count, made) in enumerate(zip(now.counts, now.decisions, strict=True), start=1):
        shown[f"tokens_{i}"] = count.mean()
        shown[f"theta_r_{i}"], shown[f"theta_s_{i}"] = made.theta_r.mean(), made.theta_s.mean()
    values = {name: float(value.detach()) for name, value in shown.items()}
    return StepLoss(total, {**values, "running_mean": running, "temperature": temperature})


def _align(llava: AtpLlava, batch: Batch, options: TrainOptions) -> StepLoss:
    """The loss while scores learn to point at what later layers attend to."""
    _, now, answers = run_batch(llava, batch, options=options, look=True)
    align = align_loss(llava, now)
    total = answers + options.lambda_align * align
    values = {"loss": total, "loss_answers": answers, "loss_align": align}
    return StepLoss(total, {name: float(value.detach()) for name, value in values.items()})


def _precision(batch: Batch, options: TrainOptions) -> torch.autocast:
    device = batch.input_ids.device.type
    return torch.autocast(device, torch.bfloat16, enabled=options.dtype == "bf16")


def n_image_tokens(llava: AtpLlava) -> int:
    """N, image tokens of one image."""
    return llava.grid[0] * llava.grid[1]


@torch.no_grad()
def watch(
    llava: AtpLlava, batches: Iterable[Batch], options: TrainOptions, device: torch.device
) -> Watched:
    """Asks the held-out questions under the hard rule, as at inference without a budget."""
    right: list[bool] = []
    kinds: list[str] = []
    losses: list[Tensor] = []
    means: list[Tensor] = []
    counts: list[Tensor] = []
    n_layer, n_tokens = len(llava.language.layers), n_image_tokens(llava)
    for given in batches:
        batch = given.to(device)
        hidden, now, loss = run_batch(
            llava, batch, temperature=None, straight=False, options=options
        )
        with _precision(batch, options):
            right += exact(llava, hidden, now, batch.labels).tolist()
        kinds += batch.kinds
        losses.append(loss * len(batch.kinds))
        means.append(mean_tokens(now, llava.spec.cuts, n_layer, n_tokens))
        counts.append(torch.stack(now.counts, dim=1))
    n = len(right)
    kept = torch.cat(counts).mean(0) / n_tokens
    per_kind = {
        kind: _share([hit for hit, k in zip(right, kinds, strict=True) if k == kind])
        for kind in sorted(set(kinds))
    }
    return Watched(
        _share(right),
        float(torch.stack(losses).sum()) / n,
        float(torch.cat(means).mean()),
        float(torch.cat(means).std(correction=0)),
        tuple(kept.tolist()),
        per_kind,
    )


def _share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)
