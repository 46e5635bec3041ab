"""What a sidecar holds: its fields, and the names that some of them are chosen from.

``docs/design/sidecar.md`` is the schema in words; ``atp_cpp.sidecar.rules`` holds the rules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = 1

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class SidecarFields:
    """Trained ATP modules with everything needed to run them and to know their model again.

    Numbers that the file stores as float32 (lambda_sample, budget, kept) are rounded to float32
    when the object is made, so that what is read back equals what was written.

    Attributes:
        arch: general.architecture of the base model.
        name: of the sidecar.
        base_name: of the base model.
        cuts: layer counts after which the modules sit, ascending, each in 1..n_layer-1.
        n_layer: depth of the base model.
        n_embd: width of the base model.
        n_head: number of attention heads of the base model.
        fingerprint: fingerprint of the base model's norms, 64 hex digits
            (`fingerprint_from_gguf`).
        grid: (rows, columns) of the patch grid in training; any grid runs.
        score_norm: none, relative or minmax.
        divisor: rows_visible or rows_all.
        score: avg, self or cross.
        rule: union, redundant or spatial.
        strides: of the spatial grids, ascending.
        lambda_sample: the spatial score's slope, 3 in ATP-LLaVA as restated.
        n_bins: points each score is resampled to.
        n_hidden: width of the head.
        activation: identity, relu or silu.
        budget: layer-mean fraction of the image tokens it was trained for, in (0, 1].
        mode: thresholds, full or lora: what was trained with the modules.
        data: what it was trained on.
        kept: mean share of the image tokens alive after each cut, never rising.
        tensors: float32 arrays; names and shapes as `tensor_shapes` gives them.
    """

    arch: str
    name: str
    base_name: str
    cuts: tuple[int, ...]
    n_layer: int
    n_embd: int
    n_head: int
    fingerprint: str
    grid: tuple[int, int]
    score_norm: str
    divisor: str
    score: str
    rule: str
    strides: tuple[int, ...]
    lambda_sample: float
    n_bins: int
    n_hidden: int
    activation: str
    budget: float
    mode: str
    data: str
    kept: tuple[float, ...]
    tensors: dict[str, Floats]

    def __post_init__(self) -> None:
        for name in ("cuts", "grid", "strides", "kept"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple, np.ndarray)):
                object.__setattr__(self, name, tuple(map(_plain, value)))
        if isinstance(self.kept, tuple) and all(is_number(share) for share in self.kept):
            object.__setattr__(self, "kept", tuple(map(_float32, self.kept)))
        for name in ("lambda_sample", "budget"):
            value = getattr(self, name)
            if is_number(value):
                object.__setattr__(self, name, _float32(value))

    def __eq__(self, other: object) -> bool:
        """Equal to the bit, tensors included."""
        if not isinstance(other, SidecarFields):
            return NotImplemented
        return (
            self.metadata() == other.metadata()
            and self.tensors.keys() == other.tensors.keys()
            and all(
                array.shape == other.tensors[name].shape
                and array.tobytes() == other.tensors[name].tobytes()
                for name, array in self.tensors.items()
            )
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def file_name(self) -> str:
        """atp-<base model>-f32.gguf, in characters every file system takes."""
        return f"atp-{re.sub(r'[^A-Za-z0-9._-]+', '-', self.base_name)}-f32.gguf"

    def metadata(self) -> dict[str, Any]:
        """Every field but the tensors."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tensors"}


def is_number(value: object) -> bool:
    """A real number; True and False are none."""
    return isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def _float32(value: float) -> float:
    try:
        with np.errstate(over="ignore"):
            return float(np.float32(value))
    except OverflowError:
        return float("inf")
