"""Random text decoders: metadata and tensors per architecture, as llama.cpp's loader wants them.

The weights are scaled so that a test sees what a trained model would show: unit-variance
residuals, peaked but not one-hot attention (about a fifth of the rows count), blocks that each
add about half of an embedding's size, logits with a standard deviation between 2 and 3.

One channel of the residual stream is a constant: embeddings set it, no block writes to it, and
the output matrix reads it as a bias per token (see `Vocabulary.logit_bias`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .gguf_file import Floats, Metadata, TensorSpec, matrix, norm, vector
from .odd_decoders import (
    CHAMELEON_VOCAB,
    ODD_ARCHS,
    Sizes,
    has_kv,
    head_norms,
    is_recurrent,
    odd_metadata,
    recurrent_tensors,
)
from .templates import CHAT_TEMPLATES, CONTROL_TOKENS
from .vocabulary import BOS_ID, EOS_ID, UNK_ID, Vocabulary, build_vocabulary

DECODER_ARCHS = ("llama", "qwen2", "qwen2vl", "qwen3vl", "gemma3", "phi3", "qwen2moe")

BIAS_CHANNEL = 0  # the residual channel that holds the constant
BIAS_VALUE = 2.0
QK_GAIN = 1.6  # of q and of k: attention logits start with a standard deviation of its square
N_EXPERT, N_EXPERT_USED = 8, 2
SWA_PERIOD = 4  # gemma3: every fourth layer sees everything, the others a window


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Sizes of a decoder.

    Attributes:
        arch: one of `DECODER_ARCHS` or `ODD_ARCHS`.
        n_layer: blocks.
        n_embd: width of the residual stream.
        head_dim: of queries, keys and values.
        n_head_kv: key/value heads; n_embd / head_dim query heads share them.
        n_ff: width of the feed-forward layer (of one expert, for a mixture of experts).
        n_vocab: tokens.
        n_ctx: trained context.
        window: sliding window in tokens (gemma3, gemma4).
        n_kv_shared: last layers without keys and values of their own (gemma4).
        n_deepstack: first layers that get image features added (qwen3vl).
        name: `general.name`.
        bias_channel: keep the constant channel; big files drawn as blocks go without.
    """

    arch: str
    n_layer: int = 8
    n_embd: int = 128
    head_dim: int = 32
    n_head_kv: int = 2
    n_ff: int = 256
    n_vocab: int = 512
    n_ctx: int = 4096
    window: int = 64
    n_kv_shared: int = 3
    n_deepstack: int = 3
    name: str = ""
    bias_channel: bool = True
    vocabulary: Vocabulary = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the sizes and build the vocabulary.

        Raises:
            ValueError: sizes that no model of this architecture can have.
        """
        known = (*DECODER_ARCHS, *ODD_ARCHS)
        if self.arch not in known:
            raise ValueError(f"architecture {self.arch!r} is not one of {', '.join(known)}")
        if self.arch == "chameleon" and self.n_vocab < CHAMELEON_VOCAB:
            object.__setattr__(self, "n_vocab", CHAMELEON_VOCAB)
        if self.arch == "cogvlm":
            object.__setattr__(self, "n_head_kv", self.n_head)
        if self.n_embd % self.head_dim or self.head_dim % 8:
            raise ValueError(f"width {self.n_embd} is not a multiple of head_dim {self.head_dim}")
        if self.n_head % self.n_head_kv:
            raise ValueError(f"{self.n_head} heads cannot share {self.n_head_kv} key/value heads")
        vocabulary = build_vocabulary(self.n_vocab, CONTROL_TOKENS[self.arch])
        object.__setattr__(self, "vocabulary", vocabulary)

    @property
    def n_head(self) -> int:
        """Query heads."""
        return self.n_embd // self.head_dim

    @property
    def n_kv(self) -> int:
        """Width of keys, and of values: head_dim * n_head_kv."""
        return self.head_dim * self.n_head_kv


def rope_sections(head_dim: int, arch: str) -> list[int]:
    """M-RoPE's split of the head_dim / 2 rotated pairs into time, row, column and nothing.

    Shares follow Qwen2-VL (16:24:24 of 64) and Qwen3-VL (24:20:20 of 64).
    """
    pairs = head_dim // 2
    spatial = pairs * 24 // 64 if arch == "qwen2vl" else pairs * 20 // 64
    return [pairs - 2 * spatial, spatial, spatial, 0]


def decoder_metadata(shape: DecoderShape) -> Metadata:
    """All keys of the file but the type and the tensors."""
    arch = shape.arch
    meta: dict[str, bool | int | float | str | list[int] | list[bool] | list[float] | list[str]] = {
        "general.type": "model",
        "general.name": shape.name or f"tiny random {arch}",
        f"{arch}.context_length": shape.n_ctx,
        f"{arch}.embedding_length": shape.n_embd,
        f"{arch}.block_count": shape.n_layer,
        f"{arch}.feed_forward_length": shape.n_ff,
        f"{arch}.attention.head_count": shape.n_head,
        f"{arch}.attention.head_count_kv": shape.n_head_kv,
        f"{arch}.attention.key_length": shape.head_dim,
        f"{arch}.attention.value_length": shape.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{arch}.rope.dimension_count": shape.head_dim,
        f"{arch}.rope.freq_base": 10000.0,
        f"{arch}.vocab_size": shape.n_vocab,
    }
    if arch in ("qwen2vl", "qwen3vl"):
        meta[f"{arch}.rope.dimension_sections"] = rope_sections(shape.head_dim, arch)
    if arch == "qwen3vl":
        meta[f"{arch}.n_deepstack_layers"] = shape.n_deepstack
    if arch == "gemma3":
        meta[f"{arch}.attention.sliding_window"] = shape.window
        pattern = [(il + 1) % SWA_PERIOD != 0 for il in range(shape.n_layer)]
        meta[f"{arch}.attention.sliding_window_pattern"] = pattern
        meta[f"{arch}.rope.freq_base_swa"] = 1000.0
    if arch == "phi3":
        meta[f"{arch}.rope.scaling.original_context_length"] = shape.n_ctx
    if arch == "qwen2moe":
        meta[f"{arch}.expert_count"] = N_EXPERT
        meta[f"{arch}.expert_used_count"] = N_EXPERT_USED
        meta[f"{arch}.expert_feed_forward_length"] = shape.n_ff
        meta[f"{arch}.expert_shared_feed_forward_length"] = shape.n_ff
    meta |= odd_metadata(shape)
    vocabulary = shape.vocabulary
    meta |= {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.scores": vocabulary.scores,
        "tokenizer.ggml.token_type": vocabulary.types,
        "tokenizer.ggml.bos_token_id": BOS_ID,
        "tokenizer.ggml.eos_token_id": EOS_ID,
        "tokenizer.ggml.unknown_token_id": UNK_ID,
        "tokenizer.ggml.add_bos_token": not arch.startswith("qwen"),
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": arch == "llama",
        "tokenizer.chat_template": CHAT_TEMPLATES[arch],
    }
    return meta


def decoder_tensors(shape: DecoderShape) -> list[TensorSpec]:
    """All tensors of the decoder, in file order."""
    # Gemma multiplies token embeddings, but not image embeddings, by sqrt(n_embd)
    embd_std = 1.0 / math.sqrt(shape.n_embd) if shape.arch in ("gemma3", "gemma4") else 1.0
    bias = shape.vocabulary.logit_bias()

    def set_constant(values: Floats) -> None:
        values[:, BIAS_CHANNEL] = BIAS_VALUE * embd_std

    def set_bias(values: Floats) -> None:
        values[:, BIAS_CHANNEL] = bias

    keep = shape.bias_channel
    tensors = [
        TensorSpec(
            name="token_embd.weight",
            shape=(shape.n_vocab, shape.n_embd),
            std=embd_std,
            edit=set_constant if keep else None,
        )
    ]
    for il in range(shape.n_layer):
        tensors += _attention(shape, il) + _feed_forward(shape, il)
    if shape.arch == "phi3":
        for span, mean in (("short", 1.0), ("long", 2.0)):
            tensors.append(norm(f"rope_factors_{span}.weight", shape.head_dim // 2, mean))
    if shape.arch == "gemma4":
        tensors.append(norm("rope_freqs.weight", shape.head_dim // 2))
    tensors.append(norm("output_norm.weight", shape.n_embd))
    tensors.append(
        matrix("output.weight", shape.n_vocab, shape.n_embd, 2.0, edit=set_bias if keep else None)
    )
    return tensors


def _writer(shape: DecoderShape, name: str, n_in: int, gain: float) -> TensorSpec:
    """A matrix whose output is added to the residual stream: it leaves the constant alone."""

    def clear(values: Floats) -> None:
        values[BIAS_CHANNEL] = 0.0

    return matrix(name, shape.n_embd, n_in, gain, edit=clear if shape.bias_channel else None)


def _post_norm(shape: DecoderShape, name: str) -> TensorSpec:
    """gemma3's norm after a block: sets the size of what is added, leaves the constant alone."""

    def clear(values: Floats) -> None:
        values[BIAS_CHANNEL] = 0.0

    return norm(name, shape.n_embd, 0.5, edit=clear if shape.bias_channel else None)


def _attention(shape: DecoderShape, il: int) -> list[TensorSpec]:
    n_q, n_kv, n_embd = shape.n_embd, shape.n_kv, shape.n_embd
    pre = f"blk.{il}."
    if is_recurrent(shape, il):
        out = _writer(shape, pre + "ssm_out.weight", Sizes.of(n_embd).n_inner, 1.2)
        return [*recurrent_tensors(shape, il), out]
    tensors = [norm(pre + "attn_norm.weight", n_embd)]
    if shape.arch in ("phi3", "cogvlm"):

        def damp_values(values: Floats) -> None:
            values[n_q + n_kv :] /= QK_GAIN

        rows, name = n_q + 2 * n_kv, pre + "attn_qkv.weight"
        tensors.append(matrix(name, rows, n_embd, QK_GAIN, edit=damp_values))
        if shape.arch == "cogvlm":
            name = pre + "vis_attn_qkv.weight"
            tensors.append(matrix(name, rows, n_embd, QK_GAIN, edit=damp_values))
    else:
        tensors.append(matrix(pre + "attn_q.weight", n_q, n_embd, QK_GAIN))
        if has_kv(shape, il):
            tensors.append(matrix(pre + "attn_k.weight", n_kv, n_embd, QK_GAIN))
            tensors.append(matrix(pre + "attn_v.weight", n_kv, n_embd))
    if shape.arch in ("qwen2", "qwen2vl", "qwen2moe"):
        for part, size in (("q", n_q), ("k", n_kv), ("v", n_kv)):
            tensors.append(vector(f"{pre}attn_{part}.bias", size, 0.3))
    if shape.arch in ("gemma3", "qwen3vl"):
        tensors.append(norm(pre + "attn_q_norm.weight", shape.head_dim, QK_GAIN))
        tensors.append(norm(pre + "attn_k_norm.weight", shape.head_dim, QK_GAIN))
    tensors += head_norms(shape, il, QK_GAIN)
    tensors.append(_writer(shape, pre + "attn_output.weight", n_q, 1.2))
    if shape.arch == "cogvlm":
        tensors.append(_writer(shape, pre + "vis_attn_output.weight", n_q, 1.2))
    if shape.arch in ("gemma3", "gemma4"):
        tensors.append(_post_norm(shape, pre + "post_attention_norm.weight"))
    return tensors


def _feed_forward(shape: DecoderShape, il: int) -> list[TensorSpec]:
    n_embd, n_ff = shape.n_embd, shape.n_ff
    pre = f"blk.{il}."
    tensors = [norm(pre + "ffn_norm.weight", n_embd)]
    if shape.arch == "qwen2moe":
        return tensors + _experts(shape, pre)
    if shape.arch == "phi3":
        tensors.append(matrix(pre + "ffn_up.weight", 2 * n_ff, n_embd))
    else:
        tensors.append(matrix(pre + "ffn_gate.weight", n_ff, n_embd))
        tensors.append(matrix(pre + "ffn_up.weight", n_ff, n_embd))
    tensors.append(_writer(shape, pre + "ffn_down.weight", n_ff, 1.0))
    if shape.arch == "cogvlm":
        tensors.append(matrix(pre + "vis_gate.weight", n_ff, n_embd))
        tensors.append(matrix(pre + "vis_up.weight", n_ff, n_embd))
        tensors.append(_writer(shape, pre + "vis_down.weight", n_ff, 1.0))
    if shape.arch in ("gemma3", "gemma4"):
        tensors.append(_post_norm(shape, pre + "post_ffw_norm.weight"))
    return tensors


def _experts(shape: DecoderShape, pre: str) -> list[TensorSpec]:
    """qwen2moe: a router, routed experts [n_expert, out, in] and one gated shared expert."""
    n_embd, n_ff = shape.n_embd, shape.n_ff

    def clear(values: Floats) -> None:
        values[:, BIAS_CHANNEL] = 0.0

    def expert(part: str, n_out: int, n_in: int, gain: float) -> TensorSpec:
        return TensorSpec(
            name=f"{pre}ffn_{part}_exps.weight",
            shape=(N_EXPERT, n_out, n_in),
            std=gain / math.sqrt(n_in),
            edit=clear if part == "down" and shape.bias_channel else None,
        )

    return [
        matrix(pre + "ffn_gate_inp.weight", N_EXPERT, n_embd, 1.5, keep_f32=True),
        expert("gate", n_ff, n_embd, 1.0),
        expert("up", n_ff, n_embd, 1.0),
        expert("down", n_embd, n_ff, 2.0),
        vector(pre + "ffn_gate_inp_shexp.weight", n_embd, 1.0 / math.sqrt(n_embd)),
        matrix(pre + "ffn_gate_shexp.weight", n_ff, n_embd),
        matrix(pre + "ffn_up_shexp.weight", n_ff, n_embd),
        _writer(shape, pre + "ffn_down_shexp.weight", n_ff, 1.0),
    ]
