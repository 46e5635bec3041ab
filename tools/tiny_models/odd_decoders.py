"""Random decoders with a part that the others do not have.

- granitehybrid: every other layer has a recurrent state (Mamba-2) in place of a KV cache, and no
  layer knows positions. The first layer is recurrent.
- gemma4: the last layers have no KV of their own. They read that of an earlier layer of their kind.
- cogvlm: image rows have weights of their own, and the graph gives the logits of all rows.
- chameleon: its head forbids the image tokens of its vocabulary, and cannot be built for no rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .gguf_file import Floats, TensorSpec, matrix, norm, vector

if TYPE_CHECKING:
    from .decoders import DecoderShape

ODD_ARCHS = ("granitehybrid", "gemma4", "cogvlm", "chameleon")

CHAMELEON_VOCAB = 8196 + 64  # its head forbids the tokens 4 to 8195
N_STATE, N_CONV, SSM_HEAD_DIM = 16, 4, 32


@dataclass(frozen=True)
class Sizes:
    """What follows from a shape.

    Attributes:
        n_inner: width of a recurrent layer.
        n_conv_in: channels of its convolution.
        n_ssm_head: its heads.
    """

    n_inner: int
    n_conv_in: int
    n_ssm_head: int

    @classmethod
    def of(cls, n_embd: int) -> Sizes:
        """Sizes for a residual stream of that width."""
        n_inner = 2 * n_embd
        return cls(n_inner, n_inner + 2 * N_STATE, n_inner // SSM_HEAD_DIM)


def is_recurrent(shape: DecoderShape, il: int) -> bool:
    """Whether a layer keeps a recurrent state."""
    return shape.arch == "granitehybrid" and il % 2 == 0


def is_full(il: int) -> bool:
    """Whether a layer of gemma4 sees everything, not a window."""
    return il % 3 == 1


def has_kv(shape: DecoderShape, il: int) -> bool:
    """Whether a layer has keys and values of its own."""
    return shape.arch != "gemma4" or il < shape.n_layer - shape.n_kv_shared


Value = bool | int | float | str | list[int] | list[bool] | list[float] | list[str]


def odd_metadata(shape: DecoderShape) -> dict[str, Value]:
    """The keys of these architectures that others do not have, or have otherwise."""
    arch, layers = shape.arch, range(shape.n_layer)
    if arch == "granitehybrid":
        sizes = Sizes.of(shape.n_embd)
        kv = [0 if is_recurrent(shape, il) else shape.n_head_kv for il in layers]
        return {
            f"{arch}.attention.head_count_kv": kv,
            f"{arch}.ssm.conv_kernel": N_CONV,
            f"{arch}.ssm.inner_size": sizes.n_inner,
            f"{arch}.ssm.state_size": N_STATE,
            f"{arch}.ssm.time_step_rank": sizes.n_ssm_head,
            f"{arch}.ssm.group_count": 1,
            f"{arch}.rope.scaling.finetuned": False,
        }
    if arch == "gemma4":
        return {
            f"{arch}.attention.sliding_window": shape.window,
            f"{arch}.attention.sliding_window_pattern": [not is_full(il) for il in layers],
            f"{arch}.attention.shared_kv_layers": shape.n_kv_shared,
            f"{arch}.attention.key_length_swa": shape.head_dim,
            f"{arch}.attention.value_length_swa": shape.head_dim,
            f"{arch}.embedding_length_per_layer_input": 0,
            f"{arch}.rope.freq_base_swa": 1000.0,
        }
    return {}


def recurrent_tensors(shape: DecoderShape, il: int) -> list[TensorSpec]:
    """A Mamba-2 block without its output matrix: states that fade over about ten rows."""
    pre, sizes = f"blk.{il}.", Sizes.of(shape.n_embd)
    n_in = sizes.n_inner + sizes.n_conv_in + sizes.n_ssm_head

    def negative(values: Floats) -> None:
        values[:] = -abs(values)

    conv_std = 1.0 / math.sqrt(N_CONV)
    conv = (sizes.n_conv_in, N_CONV)
    return [
        norm(pre + "attn_norm.weight", shape.n_embd),
        matrix(pre + "ssm_in.weight", n_in, shape.n_embd),
        TensorSpec(name=pre + "ssm_conv1d.weight", shape=conv, std=conv_std, keep_f32=True),
        vector(pre + "ssm_conv1d.bias", sizes.n_conv_in, 0.1),
        vector(pre + "ssm_dt.bias", sizes.n_ssm_head, 0.3),
        TensorSpec(
            name=pre + "ssm_a",
            shape=(sizes.n_ssm_head, 1),
            std=0.05,
            mean=-0.15,
            keep_f32=True,
            edit=negative,
        ),
        TensorSpec(
            name=pre + "ssm_d", shape=(sizes.n_ssm_head, 1), std=0.1, mean=1.0, keep_f32=True
        ),
        TensorSpec(
            name=pre + "ssm_norm.weight",
            shape=(1, sizes.n_inner),
            std=0.1,
            mean=1.0,
            keep_f32=True,
        ),
    ]


def head_norms(shape: DecoderShape, il: int, gain: float) -> list[TensorSpec]:
    """The norms of queries and keys: gemma4 has one for all heads, chameleon one for each."""
    pre = f"blk.{il}."
    if shape.arch == "gemma4":
        # attention is not divided by the root of head_dim
        gain /= shape.head_dim**0.25
        names = ["attn_q_norm", "attn_k_norm"] if has_kv(shape, il) else ["attn_q_norm"]
        return [norm(f"{pre}{name}.weight", shape.head_dim, gain) for name in names]
    if shape.arch == "chameleon":
        heads = {"attn_q_norm": shape.n_head, "attn_k_norm": shape.n_head_kv}
        return [
            TensorSpec(
                name=f"{pre}{name}.weight",
                shape=(n, shape.head_dim),
                std=0.1 * gain,
                mean=gain,
                keep_f32=True,
            )
            for name, n in heads.items()
        ]
    return []
