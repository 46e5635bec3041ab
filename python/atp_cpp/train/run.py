"""The loop: batches in, steps out, checkpoints on the way, an ATP folder at the end."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from atp_cpp.errors import AtpError
from atp_cpp.train.checkpoint import FILE_NAME, RunState, load_checkpoint, save_checkpoint
from atp_cpp.train.curve import Curve
from atp_cpp.train.data import load_processor
from atp_cpp.train.export import (
    MODEL_FOLDER,
    fingerprint_of,
    round_weights,
    save_checkpoint_folder,
    sidecar_of,
    tuned_checkpoint,
)
from atp_cpp.train.loading import load_data, load_model, pick_device, torch_dtype
from atp_cpp.train.modes import merge_adapters, prepare, trained
from atp_cpp.train.options import TrainOptions
from atp_cpp.train.step import Watched, n_image_tokens, step_loss, watch

_log = logging.getLogger(__name__)

_COLUMNS = (
    "seconds",
    "loss",
    "loss_answers",
    "loss_align",
    "loss_sparsity",
    "loss_target",
    "mean_tokens",
)
_MORE_COLUMNS = ("running_mean", "grad_norm", "lr_heads", "lr_llm", "temperature")
_WATCH_COLUMNS = ("watch_accuracy", "watch_loss", "watch_mean_tokens", "watch_std_tokens")


@dataclass(frozen=True)
class StepRow:
    """One step's figures; `watched` on steps that looked at the held-out questions."""

    step: int
    values: dict[str, float]
    watched: Watched | None = None


class Trainer:
    """One run, new or resumed.

    Args:
        options: of the run.
        resume: go on where the checkpoint in `options.out` stands.

    Attributes:
        step: steps done.
        n_steps: of the whole run; None where only the clock ends it.
        running_mean: of the layer-mean counts, in tokens; None before the first step.
        changed: options that differ from the resumed run's.

    Raises:
        AtpError: anything in the options that cannot be used, each named.
    """

    def __init__(self, options: TrainOptions, *, resume: bool = False) -> None:
        self.options, out = options, options.out
        if not resume and (out / FILE_NAME).exists():
            raise AtpError(f"{out}: holds a run already; --resume goes on with it")
        self.device = pick_device(options.device)
        processor = load_processor(options.model)
        self.llava, self.stored_dtype = load_model(options)
        self._base_fingerprint = fingerprint_of(self.llava.model)
        prepare(self.llava, options.mode, options.lora_rank, torch_dtype(options.dtype))
        self.llava.to(self.device)
        self.trained = trained(self.llava)
        self.optimizer = self._optimizer()
        self.batches, self.watch_batches = load_data(options, processor)
        theirs = self.batches.prompting.n_image_tokens
        if theirs != n_image_tokens(self.llava):
            raise AtpError(
                f"{options.model}: the processor writes {theirs} image tokens for a patch grid of "
                f"{self.llava.grid[0]} x {self.llava.grid[1]}"
            )
        self.step, self._seconds_before = 0, 0.0
        self.running_mean: float | None = None
        self.changed: tuple[str, ...] = ()
        if resume:
            self._resume()
        self.n_steps = options.steps
        if options.steps is None and options.minutes is None:
            self.n_steps = math.ceil(len(self.batches.items) / self.batches.images_per_batch)
        self._begin = time.monotonic()
        out.mkdir(parents=True, exist_ok=True)

    def _optimizer(self) -> torch.optim.Optimizer:
        heads = [p for name, p in self.trained.items() if name.startswith("heads.")]
        rest = [p for name, p in self.trained.items() if not name.startswith("heads.")]
        groups: list[dict[str, Any]] = [{"params": heads, "peak": self.options.lr_heads}]
        if rest:
            groups.append({"params": rest, "peak": self.options.lr_llm})
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)

    def _resume(self) -> None:
        state = load_checkpoint(self.options.out, self.options, self.trained, self.optimizer)
        self.batches.load_state_dict(state.data)
        self.step, self._seconds_before = state.step, state.seconds
        self.running_mean, self.changed = state.running_mean, state.changed

    @property
    def seconds(self) -> float:
        """Of training, all sessions together."""
        return self._seconds_before + time.monotonic() - self._begin

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 to 1: of its steps or of its minutes."""
        done = 0.0
        if self.n_steps is not None:
            done = self.step / self.n_steps if self.n_steps else 1.0
        if self.options.minutes is not None:
            limit = self.options.minutes * 60
            done = max(done, self.seconds / limit if limit else 1.0)
        return min(1.0, done)

    def steps(self) -> Iterator[StepRow]:
        """Trains until the run's end, giving each step's figures; saves every few minutes.

        The caller may stop between two steps and call ``save``.

        Raises:
            AtpError: the loss is not a number, or memory is short.
        """
        numbers = range(1, len(self.llava.spec.cuts) + 1)
        each = [f"{name}_{i}" for i in numbers for name in ("tokens", "theta_r", "theta_s")]
        columns = [*_COLUMNS, *each, *_MORE_COLUMNS, *_WATCH_COLUMNS]
        curve = Curve(self.options.out, columns, after_step=self.step)
        saved = time.monotonic()
        try:
            while self.progress < 1:
                row = self._one()
                watched = row.watched
                curve.add(row.step, row.values)
                if time.monotonic() - saved >= self.options.save_minutes * 60:
                    self.save()
                    saved = time.monotonic()
                yield StepRow(row.step, row.values, watched)
        finally:
            curve.close()

    def _one(self) -> StepRow:
        progress = self.progress
        rate = self.options.rate(self.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        batch = next(self.batches).to(self.device)
        try:
            loss = step_loss(self.llava, batch, self.options, progress, self.running_mean)
            if not math.isfinite(loss.values["loss"]):
                raise AtpError(
                    f"the loss is {loss.values['loss']} at step {self.step + 1}; lower --lr-llm or "
                    "--lr-heads and go on from the last checkpoint with --resume"
                )
            self.optimizer.zero_grad()
            torch.autograd.backward(loss.total)
        except torch.OutOfMemoryError as error:
            raise AtpError(
                f"out of memory on {self.device}: lower --questions-per-image or "
                "--images-per-batch, or take --dtype bf16 or --mode lora"
            ) from error
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), self.options.clip)
        self.optimizer.step()
        self.step += 1
        self.running_mean = loss.values.get("running_mean", self.running_mean)
        values = {"seconds": self.seconds, **loss.values, "grad_norm": float(norm)}
        for name, group in zip(("lr_heads", "lr_llm"), self.optimizer.param_groups, strict=False):
            values[name] = group["lr"]
        watched = self.watch() if self.step % self.options.watch_every == 0 else None
        if watched is not None:
            values["watch_accuracy"] = watched.accuracy
            values["watch_loss"] = watched.loss
            values["watch_mean_tokens"] = watched.mean_tokens
            values["watch_std_tokens"] = watched.std_tokens
        return StepRow(self.step, values, watched)

    def watch(self) -> Watched:
        """The held-out questions under the hard rule."""
        return watch(self.llava, self.watch_batches.once(), self.options, self.device)

    def save(self) -> None:
        """Writes the checkpoint."""
        state = RunState(self.step, self.seconds, self.batches.state_dict(), self.running_mean)
        save_checkpoint(self.options.out, state, self.options, self.trained, self.optimizer)

    def finish(self) -> Watched:
        """Saves, then writes the ATP folder; the trainer is not to be used afterwards.

        The figures are taken after adapters were merged and weights rounded to the checkpoint's
        own type, so that they belong to what was written.
        """
        self.save()
        fingerprint = self._base_fingerprint
        if self.options.mode != "thresholds":
            fingerprint = self._save_tuned()
        watched = self.watch()
        if not self.options.fixed:
            n_images = len({item.images[0] for item in self.batches.items})
            sidecar = sidecar_of(
                self.llava,
                self.options,
                fingerprint=fingerprint,
                kept=watched.kept,
                n_images=n_images,
            )
            sidecar.save_dir(self.options.out)
        return watched

    def _save_tuned(self) -> str:
        """Writes the tuned checkpoint, makes the model here the same; returns its fingerprint."""
        source, folder = self.options.model, self.options.out / MODEL_FOLDER
        tuned = tuned_checkpoint(self.llava, source, self.stored_dtype)
        save_checkpoint_folder(tuned, source, folder)
        fingerprint = fingerprint_of(tuned)
        if fingerprint == self._base_fingerprint:
            _log.warning(
                "%s: the decoder's norms are still those of %s in its file type, so a sidecar of "
                "one is taken for the other's; train longer, or take care not to mix them",
                folder,
                source,
            )
        merge_adapters(self.llava)
        round_weights(self.llava.model, self.stored_dtype)
        return fingerprint

    def close(self) -> None:
        """Ends the threads that read images."""
        self.batches.close()
        self.watch_batches.close()
