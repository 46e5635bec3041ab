"""What is in a sidecar, and whether it was trained for a model: for ``inspect`` and ``convert``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atp_cpp._core import ModelParams, load_sidecar, why_no_pair
from atp_cpp.sidecar.sidecar import AtpSidecar


@dataclass(frozen=True, slots=True)
class SidecarFacts:
    """A sidecar; the fields of `AtpSidecar`, and what can be told from them.

    Attributes:
        file: its path.
        kind: "ATP sidecar".
        floor: share of the image tokens, mean over all layers, that the layers before the first
            cut cost alone; a budget must be above it.
        kept_mean: mean share of the image tokens alive in training, over all layers.
        tensors: name -> shape, [rows, columns] of a matrix.
        size_bytes: of the file.
        model: the text model it was compared with; "" if none.
        fits: whether it was trained for that model; None if there was none.
        why_not: the reason if it was not.
    """

    file: str
    kind: str
    name: str
    arch: str
    base_name: str
    n_layer: int
    n_embd: int
    n_head: int
    fingerprint: str
    cuts: list[int]
    grid: list[int]
    score_norm: str
    divisor: str
    score: str
    rule: str
    strides: list[int]
    lambda_sample: float
    n_bins: int
    n_hidden: int
    activation: str
    budget: float
    kept: list[float]
    floor: float
    kept_mean: float
    mode: str
    data: str
    tensors: dict[str, list[int]]
    size_bytes: int
    model: str
    fits: bool | None
    why_not: str

    def lines(self) -> list[str]:
        """For a reader."""
        kept = ", ".join(f"{share:.1%}" for share in self.kept)
        rates = ", ".join(f"1/{stride * stride}" for stride in self.strides)
        lines = [
            f"{self.file}: ATP sidecar ({self.name})",
            f"  for            {self.base_name}: {self.arch}, {self.n_layer} layers of width "
            f"{self.n_embd}, {self.n_head} heads",
            f"  fingerprint    {self.fingerprint}",
            f"  cuts           after {', '.join(map(str, self.cuts))} layers",
            f"  kept           {kept} of the image tokens; {self.kept_mean:.1%} over all layers "
            f"(trained for {self.budget:.1%})",
            f"  least mean     above {self.floor:.1%}: {self.cuts[0]} of {self.n_layer} layers run "
            "on all image tokens, so no smaller --budget can be met",
            f"  trained        {self.mode}; grid {self.grid[0]}x{self.grid[1]}"
            + (f"; {self.data}" if self.data else ""),
            f"  scores         {self.score}, {self.score_norm}, {self.divisor}; rule {self.rule}",
            f"  rates          {rates}; lambda {self.lambda_sample:g}",
            f"  head           2 x {self.n_bins} -> {self.n_hidden} {self.activation} -> 2 "
            "thresholds",
            f"  tensors        {len(self.tensors)}, f32 ({self.size_bytes} bytes with the header)",
            *(f"    {name:<28} {shape}" for name, shape in self.tensors.items()),
        ]
        if self.fits is not None:
            answer = "yes" if self.fits else f"no: {self.why_not}"
            return [*lines, f"  fits           {self.model}: {answer}"]
        return [*lines, "  give it with --atp, beside its model in -m"]


def sidecar_facts(
    sidecar: AtpSidecar,
    path: str | os.PathLike[str],
    size_bytes: int,
    *,
    model: str = "",
    why_not: str = "",
) -> SidecarFacts:
    """The facts of a valid sidecar; `model` and `why_not` as `SidecarFacts` has them."""
    metadata: dict[str, Any] = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in sidecar.metadata().items()
    }
    return SidecarFacts(
        file=os.fspath(path),
        kind="ATP sidecar",
        floor=sidecar.cuts[0] / sidecar.n_layer,
        kept_mean=_kept_mean(sidecar),
        tensors={name: list(array.shape) for name, array in sidecar.tensors.items()},
        size_bytes=size_bytes,
        model=model,
        fits=not why_not if model else None,
        why_not=why_not,
        **metadata,
    )


def inspect_sidecar(
    path: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    n_gpu_layers: int = -1,
    n_threads: int = 0,
) -> SidecarFacts:
    """Looks into a sidecar file.

    Args:
        path: the file.
        model: text model to compare it with; it is loaded.
        n_gpu_layers: for that model.
        n_threads: for that model; 0 lets the engine choose.

    Raises:
        ModelError: not a valid sidecar, or the model cannot be loaded.
    """
    sidecar = AtpSidecar.read_gguf(path)
    size_bytes = Path(path).stat().st_size
    if model is None:
        return sidecar_facts(sidecar, path, size_bytes)
    params = ModelParams(os.fspath(model), n_gpu_layers=n_gpu_layers, n_threads=n_threads)
    why_not = why_no_pair(load_sidecar(os.fspath(path)), params)
    return sidecar_facts(sidecar, path, size_bytes, model=os.fspath(model), why_not=why_not)


def _kept_mean(sidecar: AtpSidecar) -> float:
    """Mean over the layers of the share alive: 1 before the first cut."""
    borders = (0, *sidecar.cuts, sidecar.n_layer)
    shares = (1.0, *sidecar.kept)
    alive = sum(
        share * (end - begin)
        for share, begin, end in zip(shares, borders[:-1], borders[1:], strict=True)
    )
    return alive / sidecar.n_layer
