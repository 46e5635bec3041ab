"""A run's state in one file, so that a run that was stopped goes on exactly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atp_cpp.errors import AtpError
from atp_cpp.storage.atomic import part_of, replacing
from atp_cpp.train.options import TrainOptions

FILE_NAME = "checkpoint.pt"
_VERSION = 1
# a run that changes one of these options is a new run and cannot be resumed
_FIXED = ("mode", "cuts", "score_norm", "divisor", "score", "rule", "n_bins", "n_hidden")
_FIXED_TOO = ("fixed", "lora_rank", "seed", "images_per_batch", "questions_per_image")
_FREE = ("model", "data", "out", "image_dir", "watch", "name", "device", "steps", "minutes")


@dataclass(frozen=True)
class RunState:
    """Where a run stands.

    Attributes:
        step: steps done.
        seconds: seconds of training so far, in all sessions together.
        data: the place in the stream of batches.
        running_mean: the running mean of the layer-mean counts.
        changed: options whose value has changed, "name: before -> now".
    """

    step: int
    seconds: float
    data: dict[str, int]
    running_mean: float | None
    changed: tuple[str, ...] = ()


def save_checkpoint(
    folder: Path,
    state: RunState,
    options: TrainOptions,
    trained: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Writes a temporary file and renames it, so that a reader or a crash never meets half a file.

    Raises:
        AtpError: the checkpoint cannot be written.
    """
    content = {
        "version": _VERSION,
        "options": options.as_plain(),
        "step": state.step,
        "seconds": state.seconds,
        "data": state.data,
        "running_mean": state.running_mean,
        "trained": {name: p.detach() for name, p in trained.items()},
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
    }
    path = folder / FILE_NAME
    try:
        with replacing(path, part=part_of(path)) as part, part.open("wb") as stream:
            torch.save(content, stream)
    except (OSError, RuntimeError) as error:
        raise AtpError(f"{path}: cannot be written: {error}") from error


def load_checkpoint(
    folder: Path,
    options: TrainOptions,
    trained: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> RunState:
    """Puts a saved run's weights and optimizer back.

    Raises:
        AtpError: no checkpoint, a damaged one, or one of a run with other settings.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise AtpError(f"{path}: no checkpoint to resume; leave out --resume")
    content = _read(path)
    now = options.as_plain()
    # options that are newer than the checkpoint had their defaults in that run
    defaults = TrainOptions(options.model, options.data, options.out).as_plain()
    before = {**defaults, **content["options"]}
    for name in (*_FIXED, *_FIXED_TOO):
        if now[name] != before[name]:
            raise AtpError(
                f"{path}: expected {name} to be {before[name]} as when the run began, got "
                f"{now[name]}; give the same, or another --out"
            )
    _copy_weights(content["trained"], trained, path)
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["rng"])
    changed = tuple(
        f"{name}: {before[name]} -> {now[name]}"
        for name in now
        if name not in _FREE and now[name] != before[name]
    )
    return RunState(
        content["step"], content["seconds"], content["data"], content["running_mean"], changed
    )


def load_weights(folder: Path, trained: dict[str, nn.Parameter]) -> None:
    """Puts only a saved run's weights in place, for a new run that starts from them.

    Raises:
        AtpError: no checkpoint, a damaged one, or one of another model or mode.
    """
    path = folder / FILE_NAME
    _copy_weights(_read(path)["trained"], trained, path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise AtpError(f"{path}: expected a training run's checkpoint, there is none") from None
    except Exception as error:  # torch raises almost anything on a damaged file
        raise AtpError(f"{path}: not a checkpoint of a training run: {error}") from error
    if content.get("version") != _VERSION:
        raise AtpError(f"{path}: expected version {_VERSION}, got {content.get('version')}")
    return content


@torch.no_grad()
def _copy_weights(saved: dict[str, Tensor], trained: dict[str, nn.Parameter], path: Path) -> None:
    if saved.keys() != trained.keys():
        odd = sorted(saved.keys() ^ trained.keys())[0]
        raise AtpError(f"{path}: of another model or mode: {odd} is only on one side")
    for name, parameter in trained.items():
        if saved[name].shape != parameter.shape:
            raise AtpError(
                f"{path}: of another model: {name} is {tuple(saved[name].shape)} there, "
                f"{tuple(parameter.shape)} here"
            )
        parameter.copy_(saved[name])
