"""What both training scripts share: two single-thread workers, optimizers, rate, curve, files."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn


def launch(worker: Callable[..., None], world: int, *args: object) -> None:
    """Run `worker(rank, world, *args)` in `world` processes of one thread each."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(20000 + os.getpid() % 20000))
    context = mp.get_context("fork")
    others = [
        context.Process(target=_start, args=(worker, rank, world, *args), daemon=True)
        for rank in range(1, world)
    ]
    for other in others:
        other.start()
    _start(worker, 0, world, *args)
    for other in others:
        other.join()


def _start(worker: Callable[..., None], rank: int, world: int, *args: object) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1234)  # the same start in every process
    if world > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(hours=6))
    worker(rank, world, *args)


class Mean:
    """Averages gradients over the workers through one flat buffer."""

    def __init__(self, params: list[nn.Parameter], world: int) -> None:
        self.params, self.world = [p for p in params if p.requires_grad], world
        self.flat = torch.zeros(1 + sum(p.numel() for p in self.params))
        self.progress = 0.0  # of worker 0, told to all with the gradients
        start = 1
        for p in self.params:  # gradients live in the buffer
            p.grad = self.flat[start : start + p.numel()].view_as(p)
            start += p.numel()

    def zero(self) -> None:
        self.flat.zero_()

    def reduce(self, clip: float, progress: float = 0.0) -> float:
        """All-reduce, divide, clip to norm `clip`; gives the norm before clipping."""
        self.flat[0] = progress
        if self.world > 1:
            dist.all_reduce(self.flat)
            self.flat /= self.world
        self.progress = float(self.flat[0])
        norm = float(self.flat[1:].norm())
        if norm > clip:
            self.flat *= clip / norm
        return norm


def optimizers(
    groups: list[tuple[nn.Module, float]], *, decay: float = 0.05
) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices inside layers, AdamW for the rest; (module, rate scale)."""
    muon: list[dict[str, object]] = []
    adam: list[dict[str, object]] = []
    for module, scale in groups:
        matrices, rest = [], []
        for name, p in module.named_parameters():
            (matrices if p.ndim == 2 and "layers." in name else rest).append(p)
        if matrices:
            muon.append({"params": matrices, "scale": scale})
        adam.append({"params": rest, "scale": scale})
    out: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(adam, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
    ]
    if muon:
        out.append(
            torch.optim.Muon(muon, lr=1e-3, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        )
    return out


def set_rate(opts: list[torch.optim.Optimizer], rate: float) -> None:
    for opt in opts:
        for group in opt.param_groups:
            group["lr"] = rate * group["scale"]


def schedule(step: int, progress: float, *, warmup: int, peak: float, cooldown: float) -> float:
    """Linear warm-up, constant, then a cosine fall to 2 % over the last `cooldown` share."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = min(1.0, max(0.0, progress - 1 + cooldown) / cooldown)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


class Curve:
    """Appends rows (phase, step, images, seconds, name, value) to a CSV file."""

    def __init__(self, path: Path, phase: str) -> None:
        self.path, self.phase, self.begin = path, phase, time.time()
        if not path.exists():
            path.write_text("phase,step,images,seconds,name,value\n")

    def add(self, step: int, images: int, values: dict[str, float]) -> None:
        seconds = round(time.time() - self.begin)
        with self.path.open("a", newline="") as file:
            for name, value in values.items():
                row = (self.phase, step, images, seconds, name, f"{value:.5f}")
                csv.writer(file, lineterminator="\n").writerow(row)


def save(path: Path, **content: object) -> None:
    """torch.save by way of a side file, so that a reader never sees half a file."""
    side = path.with_suffix(".part")
    torch.save(content, side)
    side.replace(path)


def normalise(pixels: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """uint8 (B, H, W, 3) -> `dtype` (B, 3, H, W) in [-1, 1]."""
    return (pixels.float() / 127.5 - 1).permute(0, 3, 1, 2).to(dtype)
