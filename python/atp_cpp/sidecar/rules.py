"""The rules a sidecar must meet (docs/design/sidecar.md): names, ranges, tensors and their shapes.

The engine checks the same rules when it loads the GGUF file (csrc/sidecar/sidecar.cpp).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import NoReturn

import numpy as np

from atp_cpp.errors import ModelError
from atp_cpp.sidecar.schema import SidecarFields, is_number

SCORE_NORMS = ("none", "relative", "minmax")
DIVISORS = ("rows_visible", "rows_all")
SCORES = ("avg", "self", "cross")
RULES = ("union", "redundant", "spatial")
ACTIVATIONS = ("identity", "relu", "silu")
MODES = ("thresholds", "full", "lora")

MAX_LAYERS = 512  # llama.cpp's limit
MAX_LIST = 64  # cuts, strides
MAX_SIDE = 4096  # rows or columns of a grid, a stride
MAX_UNITS = 4096  # n_bins, n_hidden
MAX_WIDTH = 1 << 20  # n_embd, n_head
MAX_NAME = 256  # bytes
MAX_NOTE = 4096  # bytes of `data`
MAX_BYTES = 16 << 20  # of the file


def tensor_shapes(cuts: Iterable[int], *, n_bins: int, n_hidden: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a sidecar: name -> NumPy shape (out, in). il = cut - 1."""
    shapes: dict[str, tuple[int, ...]] = {}
    for cut in cuts:
        prefix = f"blk.{cut - 1}.atp_"
        shapes[prefix + "proj.weight"] = (n_hidden, 2 * n_bins)
        shapes[prefix + "proj.bias"] = (n_hidden,)
        for theta in ("theta_r", "theta_s"):
            shapes[f"{prefix}{theta}.weight"] = (1, n_hidden)
            shapes[f"{prefix}{theta}.bias"] = (1,)
    return shapes


def check_sidecar(sidecar: SidecarFields, source: str) -> None:
    """Raises ModelError, naming `source` and the field, unless every rule is met."""
    _Check(source).sidecar(sidecar)


class _Check:
    """The rules of docs/design/sidecar.md; a failure names the file, the field and both sides."""

    def __init__(self, source: str) -> None:
        self._source = source

    def sidecar(self, s: SidecarFields) -> None:
        for field, longest in (
            ("arch", MAX_NAME),
            ("name", MAX_NAME),
            ("base_name", MAX_NAME),
            ("data", MAX_NOTE),
        ):
            self._text(field, getattr(s, field), 0 if field == "data" else 1, longest)
        for field, names in (
            ("score_norm", SCORE_NORMS),
            ("divisor", DIVISORS),
            ("score", SCORES),
            ("rule", RULES),
            ("activation", ACTIVATIONS),
            ("mode", MODES),
        ):
            value = getattr(s, field)
            if value not in names:
                self._wrong(field, f"one of {', '.join(names)}", value)
        self._whole("n_layer", s.n_layer, 2, MAX_LAYERS)
        self._whole("n_embd", s.n_embd, 1, MAX_WIDTH)
        self._whole("n_head", s.n_head, 1, MAX_WIDTH)
        self._whole("n_bins", s.n_bins, 2, MAX_UNITS)
        self._whole("n_hidden", s.n_hidden, 1, MAX_UNITS)
        self._ascending("cuts", s.cuts, s.n_layer - 1)
        self._ascending("strides", s.strides, MAX_SIDE)
        if not isinstance(s.grid, tuple) or len(s.grid) != 2:
            self._wrong("grid", "(rows, columns)", s.grid)
        for side in s.grid:
            self._whole("grid", side, 1, MAX_SIDE)
        if not isinstance(s.fingerprint, str) or not re.fullmatch("[0-9a-f]{64}", s.fingerprint):
            self._wrong(
                "fingerprint", "64 hex digits (a norm of the model not f32?)", s.fingerprint
            )
        if not is_number(s.lambda_sample) or not 0 < s.lambda_sample < np.inf:
            self._wrong("lambda_sample", "a finite number above 0", s.lambda_sample)
        if not is_number(s.budget) or not 0 < s.budget <= 1:
            self._wrong("budget", "a fraction in (0, 1]", s.budget)
        self._kept(s)
        self._tensors(s)

    def _kept(self, s: SidecarFields) -> None:
        if not isinstance(s.kept, tuple) or len(s.kept) != len(s.cuts):
            self._wrong("kept", f"{len(s.cuts)} fractions, one a cut", s.kept)
        before = 1.0
        for share in s.kept:
            if not is_number(share) or not 0 < share <= before:
                self._wrong("kept", "fractions in (0, 1], none above the one before", s.kept)
            before = share

    def _tensors(self, s: SidecarFields) -> None:
        shapes = tensor_shapes(s.cuts, n_bins=s.n_bins, n_hidden=s.n_hidden)
        if not isinstance(s.tensors, Mapping):
            self._wrong("tensors", "a dictionary of arrays", type(s.tensors).__name__)
        for name in shapes.keys() - s.tensors.keys():
            raise ModelError(f"{self._source}: tensor {name} is missing; expected {shapes[name]}")
        for name in s.tensors.keys() - shapes.keys():
            raise ModelError(
                f"{self._source}: tensor {name} belongs to no cut; the cuts are {s.cuts}"
            )
        size = 0
        for name, shape in shapes.items():
            array = s.tensors[name]
            if not isinstance(array, np.ndarray) or array.dtype != np.float32:
                self._wrong(name, "a float32 array", getattr(array, "dtype", type(array).__name__))
            if array.shape != shape:
                self._wrong(name, f"the shape {shape}", array.shape)
            if not np.isfinite(array).all():
                self._wrong(name, "finite numbers", "NaN or Inf")
            size += array.nbytes
        if size > MAX_BYTES - (1 << 16):
            self._wrong("tensors", f"at most {MAX_BYTES >> 20} MiB together", f"{size} bytes")

    def _text(self, field: str, value: object, shortest: int, longest: int) -> None:
        if not isinstance(value, str) or not shortest <= len(value.encode()) <= longest:
            shown = f"{len(value)} characters" if isinstance(value, str) else value
            self._wrong(field, f"text of {shortest} to {longest} bytes", shown)
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
            self._wrong(field, "text without control characters", value)

    def _whole(self, field: str, value: object, least: int, most: int) -> None:
        if type(value) is not int or not least <= value <= most:
            self._wrong(field, f"a whole number in {least}..{most}", value)

    def _ascending(self, field: str, values: object, most: int) -> None:
        if not isinstance(values, tuple) or not 1 <= len(values) <= MAX_LIST:
            self._wrong(field, f"1 to {MAX_LIST} whole numbers", values)
        before = 0
        for value in values:
            self._whole(field, value, 1, most)
            if value <= before:
                self._wrong(field, "ascending numbers", values)
            before = value

    def _wrong(self, field: str, expected: str, got: object) -> NoReturn:
        raise ModelError(f"{self._source}: {field} must be {expected}, got {got!r}")
