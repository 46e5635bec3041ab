"""The demo model in plain PyTorch, weight for weight what transformers' LLaVA classes hold.

    pixels (B, 3, H, W) -> Eye -> (B, n, 192) -> Projector -> (B, n, D) -> Decoder -> logits

The eye is a SigLIP tower without its last LayerNorm and head, the decoder a Llama.  `Heads` reads
dense labels off the eye's output while the eye trains; it is not shipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GRID = 24
PATCH = 14
HEAD_DIM = 64


@dataclass(frozen=True)
class Config:
    """Sizes of the demo model."""

    eye_width: int = 192
    eye_layers: int = 6
    eye_ffn: int = 768
    width: int = 256
    layers: int = 12
    ffn: int = 512
    vocab: int = 480
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    eye_eps: float = 1e-6


def sincos_2d(width: int, grid: int) -> Tensor:
    """The start of the learned position table: 2-D sines and cosines (grid * grid, width)."""
    quarter = width // 4
    freq = 1.0 / (100.0 ** (torch.arange(quarter) / quarter))
    angle = torch.arange(grid).float()[:, None] * freq  # (grid, quarter)
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)  # (grid, width / 2)
    rows = wave[:, None, :].expand(grid, grid, -1)
    cols = wave[None, :, :].expand(grid, grid, -1)
    return torch.cat([rows, cols], dim=2).reshape(grid * grid, width)


def heads(x: Tensor) -> Tensor:
    """(B, n, width) -> (B, heads, n, 64)."""
    b, n, w = x.shape
    return x.view(b, n, w // HEAD_DIM, HEAD_DIM).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention spelled out, (B, heads, n, 64) -> the same; bias (B or 1, 1, n, n) is added.

    On these CPUs in bfloat16 it takes less than half the time of scaled_dot_product_attention.
    """
    score = torch.matmul(q * HEAD_DIM**-0.5, k.transpose(-1, -2))
    if bias is not None:
        score = score + bias
    return torch.matmul(score.softmax(-1, dtype=score.dtype), v)


@dataclass(frozen=True)
class Packed:
    """How packed rows attend: `opening` rows first, then groups of questions.

    A text row sees the whole opening and, in its own group of `group` rows, what `own`
    (B, 1, groups, group, group) leaves at 0; opening rows see `causal` (1, 1, opening, opening).
    """

    opening: int
    group: int
    causal: Tensor
    own: Tensor


def attend_packed(q: Tensor, k: Tensor, v: Tensor, how: Packed) -> Tensor:
    """`attend` for packed rows (B, heads, n, 64), without the pairs that a full mask would hide."""
    b, h, n, d = q.shape
    cut, text = how.opening, n - how.opening
    shape = (b, h, text // how.group, how.group, d)
    first = attend(q[:, :, :cut], k[:, :, :cut], v[:, :, :cut], how.causal)
    ask = q[:, :, cut:] * HEAD_DIM**-0.5
    keys, values = k[:, :, cut:].reshape(shape), v[:, :, cut:].reshape(shape)
    own = torch.matmul(ask.reshape(shape), keys.transpose(-1, -2)) + how.own
    far = torch.matmul(ask, k[:, :, :cut].transpose(-1, -2))
    score = torch.cat([far, own.view(b, h, text, how.group)], dim=-1)
    far, own = score.softmax(-1, dtype=score.dtype).split([cut, how.group], dim=-1)
    near = torch.matmul(own.reshape(*shape[:4], how.group), values).view(b, h, text, d)
    return torch.cat([first, torch.matmul(far, v[:, :, :cut]) + near], dim=2)


class EyeLayer(nn.Module):
    """One pre-norm transformer layer of the eye, (B, n, width) -> the same."""

    def __init__(self, width: int, ffn: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm2 = nn.LayerNorm(width, eps)
        self.up, self.down = nn.Linear(width, ffn), nn.Linear(ffn, width)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.cat([self.q.weight, self.k.weight, self.v.weight])
        bias = torch.cat([self.q.bias, self.k.bias, self.v.bias])
        q, k, v = F.linear(self.norm1(x), weight, bias).chunk(3, dim=2)
        y = attend(heads(q), heads(k), heads(v))
        x = x + self.o(y.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Eye(nn.Module):
    """Pixels in [-1, 1] -> image tokens; a window of the grid is allowed."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.patch = nn.Linear(3 * PATCH * PATCH, cfg.eye_width)
        self.pos = nn.Parameter(0.5 * sincos_2d(cfg.eye_width, GRID))
        self.layers = nn.ModuleList(
            EyeLayer(cfg.eye_width, cfg.eye_ffn, cfg.eye_eps) for _ in range(cfg.eye_layers)
        )

    def forward(self, pixels: Tensor, where: Tensor | None = None) -> Tensor:
        """(B, 3, 14 h, 14 w) [, (B, h * w) positions in the table] -> (B, h * w, width)."""
        b, _, hh, ww = pixels.shape
        h, w = hh // PATCH, ww // PATCH
        x = pixels.view(b, 3, h, PATCH, w, PATCH).permute(0, 2, 4, 1, 3, 5)
        x = self.patch(x.reshape(b, h * w, -1))
        x = x + (self.pos if where is None else F.embedding(where, self.pos))
        for layer in self.layers:
            x = layer(x)
        return x


class Heads(nn.Module):
    """Dense labels off the eye: object 1, shape 3, color 8, offset 2, centre 1, place 2."""

    SIZES = (1, 3, 8, 2, 1, 2)

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.out = nn.Linear(cfg.eye_width, sum(self.SIZES))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.out(x).float().split(self.SIZES, dim=-1)


class Projector(nn.Module):
    """Two linear layers and a GELU, (B, n, eye width) -> (B, n, decoder width)."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.linear1 = nn.Linear(cfg.eye_width, cfg.width)
        self.linear2 = nn.Linear(cfg.width, cfg.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(x), approximate="tanh"))


class Norm(nn.Module):
    """RMSNorm as Llama's."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, Llama's half-split layout: x (B, heads, n, 64), cos, sin (B, 1, n, 64)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class DecoderLayer(nn.Module):
    """One Llama layer, (B, n, width) -> the same."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        w, f = cfg.width, cfg.ffn
        self.norm1, self.norm2 = Norm(w, cfg.norm_eps), Norm(w, cfg.norm_eps)
        self.q, self.k, self.v, self.o = (nn.Linear(w, w, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(w, f, bias=False), nn.Linear(w, f, bias=False)
        self.down = nn.Linear(f, w, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, how: Packed | Tensor) -> Tensor:
        weight = torch.cat([self.q.weight, self.k.weight, self.v.weight])
        q, k, v = F.linear(self.norm1(x), weight).chunk(3, dim=2)
        q, k = rotate(heads(q), cos, sin), rotate(heads(k), cos, sin)
        packed = isinstance(how, Packed)
        y = attend_packed(q, k, heads(v), how) if packed else attend(q, k, heads(v), how)
        x = x + self.o(y.transpose(1, 2).reshape(x.shape))
        gate, up = F.linear(self.norm2(x), torch.cat([self.gate.weight, self.up.weight])).chunk(
            2, dim=2
        )
        return x + self.down(F.silu(gate) * up)


def causal_bias(n: int, dtype: torch.dtype) -> Tensor:
    """(1, 1, n, n): 0 where a row may look, a large negative number where not."""
    return torch.full((n, n), -1e4, dtype=dtype).triu(1)[None, None]


class Decoder(nn.Module):
    """Embedding rows (B, n, width) with their positions -> hidden rows (B, n, width)."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.embed = nn.Embedding(cfg.vocab, cfg.width)
        self.layers = nn.ModuleList(DecoderLayer(cfg) for _ in range(cfg.layers))
        self.norm = Norm(cfg.width, cfg.norm_eps)
        self.out = nn.Linear(cfg.width, cfg.vocab, bias=False)
        half = torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM
        self.register_buffer("freq", cfg.rope_theta**-half, persistent=False)

    def forward(self, rows: Tensor, pos: Tensor, how: Packed | None = None) -> Tensor:
        """Rows (B, n, width), pos (B, n); without `how` plain causal attention."""
        angle = pos[:, None, :, None].float() * self.freq  # (B, 1, n, 32)
        angle = torch.cat([angle, angle], dim=-1)
        cos, sin = angle.cos().to(rows), angle.sin().to(rows)
        for layer in self.layers:
            rows = layer(rows, cos, sin, how or causal_bias(rows.shape[1], rows.dtype))
        return self.norm(rows)


class Demo(nn.Module):
    """Eye, projector and decoder together."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.eye, self.projector, self.decoder = Eye(cfg), Projector(cfg), Decoder(cfg)
        self.apply(init_weights)
        for layer in self.decoder.layers:
            for part in (layer.o, layer.down):
                nn.init.normal_(part.weight, std=0.02 / math.sqrt(2 * cfg.layers))


def init_weights(module: nn.Module) -> None:
    """Small normal weights, zero biases; norms and the position table keep their start."""
    if isinstance(module, nn.Linear):
        std = 0.02 if module.bias is None else module.in_features**-0.5
        nn.init.normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.05)
