"""Sidecars for tests, and GGUF files put together byte by byte so that they can be wrong."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from atp_cpp.sidecar.sidecar import AtpSidecar, tensor_shapes

# GGUF's type ids
U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
FORMS = dict(zip((U8, I8, U16, I16, U32, I32, F32, BOOL), "BbHhIif?", strict=True))
FORMS |= {U64: "Q", I64: "q", F64: "d"}

Keys = dict[str, tuple[int, Any]]  # key -> (type, value); an array's value is (element type, list)
Tensors = dict[str, tuple[tuple[int, ...], int, bytes]]  # name -> (ne, element type, bytes)


def example(**changes: Any) -> AtpSidecar:
    """A valid sidecar for a decoder of 4 layers, width 64 and 4 heads; weights are noise."""
    values: dict[str, Any] = {
        "arch": "llama",
        "name": "ATP for tiny",
        "base_name": "tiny",
        "cuts": (1, 3),
        "n_layer": 4,
        "n_embd": 64,
        "n_head": 4,
        "fingerprint": "0123456789abcdef" * 4,
        "grid": (4, 6),
        "score_norm": "relative",
        "divisor": "rows_visible",
        "score": "avg",
        "rule": "union",
        "strides": (2, 3, 4, 6, 8, 12),
        "lambda_sample": 3.0,
        "n_bins": 8,
        "n_hidden": 5,
        "activation": "silu",
        "budget": 0.3,
        "mode": "thresholds",
        "data": "nothing, this is noise; 画像も",
        "kept": (0.7, 0.1),
    } | changes
    rng = np.random.default_rng(11)
    shapes = tensor_shapes(values["cuts"], n_bins=values["n_bins"], n_hidden=values["n_hidden"])
    noise = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return AtpSidecar(**({"tensors": noise} | values))


def keys_of(s: AtpSidecar) -> Keys:
    """What docs/design/sidecar.md says the file of this sidecar holds."""
    atp = "adapter.atp."
    return {
        "general.architecture": (STR, s.arch),
        "general.type": (STR, "adapter"),
        "general.name": (STR, s.name),
        "general.base_model.count": (U32, 1),
        "general.base_model.0.name": (STR, s.base_name),
        "adapter.type": (STR, "atp"),
        atp + "version": (U32, 1),
        atp + "cuts": (ARR, (I32, list(s.cuts))),
        atp + "base.n_layer": (U32, s.n_layer),
        atp + "base.n_embd": (U32, s.n_embd),
        atp + "base.n_head": (U32, s.n_head),
        atp + "base.fingerprint": (STR, s.fingerprint),
        atp + "grid": (ARR, (I32, list(s.grid))),
        atp + "score_norm": (STR, s.score_norm),
        atp + "divisor": (STR, s.divisor),
        atp + "score": (STR, s.score),
        atp + "rule": (STR, s.rule),
        atp + "activation": (STR, s.activation),
        atp + "strides": (ARR, (I32, list(s.strides))),
        atp + "lambda_sample": (F32, s.lambda_sample),
        atp + "n_bins": (U32, s.n_bins),
        atp + "n_hidden": (U32, s.n_hidden),
        atp + "training.budget": (F32, s.budget),
        atp + "training.mode": (STR, s.mode),
        atp + "training.data": (STR, s.data),
        atp + "training.kept": (ARR, (F32, list(s.kept))),
    }


def tensors_of(s: AtpSidecar) -> Tensors:
    """The tensors of its file, in order."""
    return {name: (a.shape[::-1], 0, a.tobytes()) for name, a in s.tensors.items()}


def encode(
    keys: Keys | list[tuple[str, tuple[int, Any]]],
    tensors: Tensors | list[tuple[str, tuple[tuple[int, ...], int, bytes]]],
    **header: int,
) -> bytes:
    """The bytes of a GGUF file; `version`, `n_keys` and `n_tensors` may be lied about."""
    keys = list(keys.items()) if isinstance(keys, dict) else keys
    tensors = list(tensors.items()) if isinstance(tensors, dict) else tensors
    out = b"GGUF" + struct.pack(
        "<IQQ",
        header.get("version", 3),
        header.get("n_tensors", len(tensors)),
        header.get("n_keys", len(keys)),
    )
    for key, (kind, value) in keys:
        out += _string(key) + struct.pack("<I", kind) + _value(kind, value)
    offset = 0
    for name, (ne, kind, content) in tensors:
        out += _string(name) + struct.pack("<I", len(ne)) + struct.pack(f"<{len(ne)}Q", *ne)
        out += struct.pack("<IQ", kind, offset)
        offset += len(_padded(content))
    return _padded(out) + b"".join(_padded(content) for _, (_, _, content) in tensors)


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: int, value: Any) -> bytes:
    if isinstance(value, bytes) and kind != STR:  # raw
        return value
    if kind == STR:
        return _string(value)
    if kind == ARR:
        element, values = value
        body = b"".join(_value(element, v) for v in values)
        return struct.pack("<IQ", element, len(values)) + body
    return struct.pack("<" + FORMS[kind], value)


def _padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 32)
