"""What laws are measured with: a staged and a plain decoder of one model, prompts, errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atp_cpp import _core as core

Floats = NDArray[np.float32]
SILENCED = np.finfo(np.float32).min  # the logit of a token that shall not be said

ARCHS = ("llama", "qwen2", "qwen2vl", "qwen3vl", "gemma3", "phi3", "qwen2moe")
# with F32 weights nothing rounds but F32 arithmetic (and what tolerance.py says)
EXACT = {"flash_attn": "off", "type_k": "f32", "type_v": "f32"}
PRECISIONS: dict[str, dict[str, Any]] = {
    "f32": EXACT,
    "f16": {},
    "q8_0": {"flash_attn": "on", "type_k": "q8_0", "type_v": "q8_0"},
}


@dataclass(frozen=True)
class Rig:
    """One model file with load options; makes decoders of both kinds.

    Attributes:
        path: the GGUF file.
        arch: its architecture, for what the prompt must look like.
        options: keyword arguments of `ModelParams`.
        backend: row of the tolerance table, "cpu" or "rpc".
        deep: a model of many layers, in which roundings grow: rows of their own in the table.
    """

    path: Path
    arch: str
    options: dict[str, Any] = field(default_factory=dict)
    backend: str = "cpu"
    deep: bool = False

    def params(self, **options: Any) -> core.ModelParams:
        defaults = {"n_ctx": 512, "n_ubatch": 64, "n_threads": 1}
        return core.ModelParams(str(self.path), **(defaults | self.options | options))

    def staged(self, **options: Any) -> core.Decoder:
        return core.Decoder(self.params(**options))

    def plain(self, **options: Any) -> core.Reference:
        return core.Reference(self.params(**options))

    @property
    def precision(self) -> str:
        """How much is rounded between two runs of the same thing, for the tolerance table."""
        exact = all(self.options.get(key) == value for key, value in EXACT.items())
        name = "f32" if exact else str(self.options.get("type_k", "f16"))
        suffix = {"gemma3": ", GELU table", "qwen2moe": ", experts"}.get(self.arch, "")
        return name + suffix + (", deep" if self.deep else "")


def prompt(
    rig: Rig,
    decoder: core.Decoder,
    *parts: int | tuple[int, int],
    seed: int = 0,
    leading: Sequence[int] = (),
) -> core.Sequence:
    """A random prompt: an int is that many text tokens, a pair is an image of that grid.

    The tokens `leading` come before.

    Image rows of M-RoPE models get a time, row and column as Qwen2-VL has them; those of gemma3
    see each other in both directions.
    """
    rng = np.random.default_rng(seed)
    seq = core.Sequence(decoder.n_embd_inp)
    seq.add_text(leading)
    for part in parts:
        if isinstance(part, int):
            seq.add_text([int(t) for t in rng.integers(first_text(decoder), decoder.n_vocab, part)])
            continue
        rows, cols = part
        embd = rng.standard_normal((rows * cols, decoder.n_embd_inp)).astype(np.float32)
        if decoder.mrope:
            y, x = np.divmod(np.arange(rows * cols), cols)
            where = np.stack([0 * y, y, x], axis=1) + seq.n_pos
            where = np.pad(where, ((0, 0), (0, 1))).astype(np.int32)
            seq.add_image(embd, grid=part, pos=where, n_pos=max(part))
        else:
            seq.add_image(embd, grid=part, causal=rig.arch != "gemma3")
    return seq


def first_text(decoder: core.Decoder) -> int:
    """The first token id that stands for text; our own vocabularies open with bytes and signs."""
    return 300 if decoder.n_vocab > 300 else 0


def steps(decoder: core.Decoder, n: int, seed: int = 0) -> list[int]:
    """Token ids to decode, as a caller might have sampled them."""
    rng = np.random.default_rng([99, seed])
    return [int(t) for t in rng.integers(first_text(decoder), decoder.n_vocab, n)]


def live_rows(seq: core.Sequence, kept: Sequence[int]) -> list[int]:
    """Rows of the prompt that are alive when the image tokens `kept` are: all text, and those."""
    alive = {seq.image_rows[i] for i in kept}
    images = set(seq.image_rows)
    return [row for row in range(seq.n_rows) if row not in images or row in alive]


def dead_rows(seq: core.Sequence, kept: Sequence[int]) -> list[int]:
    """Rows of the prompt that are not."""
    return sorted(set(range(seq.n_rows)) - set(live_rows(seq, kept)))


def nmse(expected: Floats, measured: Floats) -> float:
    """Squared error relative to the power of what was expected.

    Tokens that an architecture silences are left out: chameleon does so in the first of all rows
    only, whichever that is.
    """
    assert expected.shape == measured.shape
    silent = (expected == SILENCED) | (measured == SILENCED)
    spoken = ~silent.any(axis=tuple(range(silent.ndim - 1)))
    a, b = (x[..., spoken].astype(np.float64) for x in (expected, measured))
    return float(((a - b) ** 2).sum() / (a**2).sum())


def max_abs(expected: Floats, measured: Floats) -> float:
    """The largest difference anywhere."""
    assert expected.shape == measured.shape
    return float(np.abs(expected.astype(np.float64) - measured).max())
