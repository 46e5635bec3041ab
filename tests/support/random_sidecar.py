"""Sidecars with random weights, wild enough that thresholds land anywhere."""

from __future__ import annotations

from typing import Any

import numpy as np

from atp_cpp.sidecar.sidecar import AtpSidecar, tensor_shapes

KEEP_ALL = -40.0  # bias of theta_r: a threshold of 4e-18


def random_sidecar(seed: int = 0, **fields: Any) -> AtpSidecar:
    """A valid sidecar; `fields` go before what is drawn.

    Args:
        seed: of the draw.
        fields: of AtpSidecar; "theta_r_bias" and "theta_s_bias" set those biases in all modules.
    """
    rng = np.random.default_rng([7, seed])
    biases = {t: fields.pop(f"theta_{t}_bias", None) for t in "rs"}
    n_layer = fields.get("n_layer", 8)
    cuts = fields.get("cuts", (2, 5) if n_layer == 8 else (1,))
    known: dict[str, Any] = {
        "arch": "llama", "name": "random", "base_name": "tiny", "cuts": cuts, "n_layer": n_layer,
        "n_embd": 128, "n_head": 4, "fingerprint": "0" * 64, "grid": (8, 8),
        "score_norm": "relative", "divisor": "rows_visible", "score": "avg", "rule": "union",
        "strides": (2, 3, 4, 6, 8, 12), "lambda_sample": 3.0, "n_bins": 16, "n_hidden": 8,
        "activation": "silu", "budget": 0.5, "mode": "thresholds", "data": "none",
        "kept": np.sort(rng.uniform(0.02, 1.0, len(cuts)))[::-1], "tensors": {},
    }  # fmt: skip
    sidecar = AtpSidecar(**(known | fields))
    for name, shape in tensor_shapes(
        sidecar.cuts, n_bins=sidecar.n_bins, n_hidden=sidecar.n_hidden
    ).items():
        scale = 1.0 if "theta" in name else 1 / np.sqrt(sidecar.n_bins)
        sidecar.tensors[name] = rng.normal(0, scale, shape).astype(np.float32)
        for t, bias in biases.items():
            if bias is not None and f"theta_{t}.bias" in name:
                sidecar.tensors[name][:] = bias
            elif bias is not None and f"theta_{t}.weight" in name:
                sidecar.tensors[name][:] = 0
    sidecar.validate()
    return sidecar
