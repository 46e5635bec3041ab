"""The fingerprint of a decoder: tells whether a sidecar was trained for it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from atp_cpp.models.gguf_header import GgufHeader, read_header, read_tensor

_F32 = 0  # ggml's id of the element type
_MAX_LAYERS = 512  # llama.cpp's limit


def fingerprint_from_arrays(norms: Iterable[Any]) -> str:
    """SHA-256 of a decoder's norm weights: tells whether a sidecar belongs to it.

    Norms stay float32 in every quantisation, and training the language model changes them, so all
    quantisations of one model share a fingerprint and a fine-tuned one has its own.

    Args:
        norms: output_norm, then attn_norm and ffn_norm of each layer in order (in Hugging Face's
            names model.norm, input_layernorm, post_attention_layernorm), each [n_embd]. Values as
            the GGUF stores them: Gemma's converter adds 1.

    Returns:
        64 hex digits.
    """
    digest = hashlib.sha256()
    for norm in norms:
        digest.update(np.ascontiguousarray(norm, dtype="<f4").tobytes())
    return digest.hexdigest()


def fingerprint_from_gguf(path: str | os.PathLike[str]) -> str:
    """The fingerprint of a GGUF text model; "" if a norm is missing or not float32.

    Raises:
        ModelError: not a GGUF, or cut short.
    """
    header = read_header(path)
    n_layer = _depth(header)
    names = ["output_norm.weight"]
    for il in range(n_layer):
        names += [f"blk.{il}.attn_norm.weight", f"blk.{il}.ffn_norm.weight"]
    if n_layer == 0 or any(
        name not in header.tensors or header.tensors[name].type != _F32 for name in names
    ):
        return ""
    return fingerprint_from_arrays(read_tensor(path, header, name) for name in names)


def _depth(header: GgufHeader) -> int:
    """Decoder layers, without those that only predict further tokens."""
    counts = []
    for key in ("block_count", "nextn_predict_layers"):
        value = header.metadata.get(f"{header.arch}.{key}", 0)
        counts.append(int(value) if isinstance(value, (int, float)) else 0)
    n_layer = counts[0] - counts[1]
    return n_layer if 0 < n_layer <= _MAX_LAYERS else 0
