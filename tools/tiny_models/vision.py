"""Random vision towers with a projector (mmproj files), as llama.cpp's mtmd loads them.

| layout    | tower                                    | image tokens                              |
|-----------|------------------------------------------|-------------------------------------------|
| `mlp`     | SigLIP-like, no class token              | (image / patch)^2, LLaVA projector        |
| `mlp-cls` | CLIP-like, class token, pre-norm         | the same (LLaVA-1.5)                      |
| `qwen2vl` | 2D RoPE, any size, 2x2 merge             | (rows / 2) * (columns / 2) patches        |
| `qwen3vl` | 2D RoPE and learned positions, deepstack | the same, rows of (1 + deepstack) * width |
| `gemma3`  | SigLIP-like, average pool                | (image / patch / pool)^2, attend both ways|
| `pixtral` | 2D RoPE, any size, a token ends a line   | rows * (columns + 1) - 1                  |
| `mistral3`| the same, 2x2 merge                      | the same, of (rows / 2) * (columns / 2)   |
| `gemma4v` | 2D RoPE, two position tables, 3x3 pool   | (rows / 3) * (columns / 3), at least 70   |

Image tokens come out with a variance near one, the size of a text embedding. `block_count` and
`feature_layer` are both written, so that no reader has to guess where features are taken:
after all blocks, or for `mlp-cls` after all but the last, as LLaVA-1.5 does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .gguf_file import Metadata, TensorSpec, matrix, norm, vector

VISION_LAYOUTS = (
    *("mlp", "mlp-cls", "qwen2vl", "qwen3vl", "gemma3"),
    *("pixtral", "mistral3", "gemma4v"),
)
LAYOUT_OF_ARCH = {"qwen2vl": "qwen2vl", "qwen3vl": "qwen3vl", "gemma3": "gemma3"}  # else mlp

_N_POSITIONS = 128  # of a side, in the tables of gemma4v
MERGE = 2  # patches merged per side by the Qwen projectors and by gemma3's pool here
_PROJECTOR = {
    "mlp": "mlp",
    "mlp-cls": "mlp",
    "qwen2vl": "qwen2vl_merger",
    "qwen3vl": "qwen3vl_merger",
    "gemma3": "gemma3",
    "pixtral": "pixtral",
    "mistral3": "pixtral",
    "gemma4v": "gemma4v",
}
_RMS_NORM = ("pixtral", "mistral3", "gemma4v")  # and no bias


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """Sizes of a vision tower.

    Attributes:
        layout: one of `VISION_LAYOUTS`.
        n_embd_text: width of the text model that gets the image tokens.
        image_size: side in pixels; for the Qwen layouts the size the position table is made for.
        patch_size: side of a patch in pixels.
        n_layer: blocks.
        n_embd: width of the tower.
        n_head: attention heads.
        n_ff: width of the feed-forward layer; must differ from `n_embd`, or llama.cpp would take
            the file for an old one with its two feed-forward matrices swapped.
        n_deepstack: blocks, counted from the second, that also send features (qwen3vl).
        name: `general.name`.
    """

    layout: str
    n_embd_text: int = 128
    image_size: int = 112
    patch_size: int = 14
    n_layer: int = 4
    n_embd: int = 64
    n_head: int = 2
    n_ff: int = 128
    n_deepstack: int = 3
    name: str = ""

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: sizes that llama.cpp would refuse or misread.
        """
        if self.layout not in VISION_LAYOUTS:
            raise ValueError(f"layout {self.layout!r} is not one of {', '.join(VISION_LAYOUTS)}")
        if self.n_embd % self.n_head or self.n_embd // self.n_head % 4:
            raise ValueError(f"width {self.n_embd} does not fit {self.n_head} heads")
        if self.n_ff == self.n_embd:
            raise ValueError("the feed-forward layer must not be as wide as the tower")
        if self.image_size % (self.patch_size * self.merge):
            raise ValueError(f"image size {self.image_size} is not a whole number of patches")
        if self.layout == "qwen3vl" and self.n_deepstack >= self.n_layer:
            raise ValueError(f"{self.n_deepstack} deepstack features need more blocks")

    @property
    def merge(self) -> int:
        """Patches per side of one image token."""
        return 1 if self.layout in ("mlp", "mlp-cls", "pixtral", "gemma4v") else MERGE

    @property
    def n_patches(self) -> int:
        """Patches of an image of `image_size`."""
        return (self.image_size // self.patch_size) ** 2


def vision_metadata(shape: VisionShape) -> Metadata:
    """All keys of the file but the type and the tensors."""
    is_clip = shape.layout == "mlp-cls"
    mean = [0.48145466, 0.4578275, 0.40821073] if is_clip else [0.5, 0.5, 0.5]
    std = [0.26862954, 0.26130258, 0.27577711] if is_clip else [0.5, 0.5, 0.5]
    meta: dict[str, bool | int | float | str | list[float] | list[int]] = {
        "general.type": "mmproj",
        "general.name": shape.name or "tiny random tower",  # a tower for any tiny random decoder
        "clip.has_vision_encoder": True,
        "clip.projector_type": _PROJECTOR[shape.layout],
        "clip.use_gelu": shape.layout in ("mlp", "qwen3vl", "gemma3"),
        "clip.vision.image_size": shape.image_size,
        "clip.vision.patch_size": shape.patch_size,
        "clip.vision.embedding_length": shape.n_embd,
        "clip.vision.feed_forward_length": shape.n_ff,
        "clip.vision.block_count": shape.n_layer,
        "clip.vision.projection_dim": shape.n_embd_text,
        "clip.vision.attention.head_count": shape.n_head,
        "clip.vision.attention.layer_norm_epsilon": 1e-5 if is_clip else 1e-6,
        "clip.vision.image_mean": mean,
        "clip.vision.image_std": std,
    }
    if shape.layout == "mlp":
        meta["clip.vision.feature_layer"] = [shape.n_layer]
    if shape.layout == "mlp-cls":
        meta["clip.vision.feature_layer"] = [shape.n_layer - 1]
    if shape.layout in ("qwen2vl", "qwen3vl", "mistral3"):
        meta["clip.vision.spatial_merge_size"] = shape.merge
    if shape.layout == "gemma3":
        meta["clip.vision.projector.scale_factor"] = shape.merge
    return meta


def vision_tensors(shape: VisionShape) -> list[TensorSpec]:
    """All tensors of the tower and the projector, in file order."""
    tensors = _embeddings(shape)
    if shape.layout in ("pixtral", "mistral3"):
        tensors.append(norm("v.pre_ln.weight", shape.n_embd))
    for il in range(shape.n_layer):
        tensors += _block(shape, il)
    if shape.layout == "gemma3" or shape.layout.startswith("qwen"):
        tensors += _layer_norm("v.post_ln", shape.n_embd)
    return tensors + _projector(shape)


def _layer_norm(name: str, size: int) -> list[TensorSpec]:
    return [norm(f"{name}.weight", size), vector(f"{name}.bias", size, 0.1)]


def _linear(name: str, n_out: int, n_in: int, gain: float = 1.0) -> list[TensorSpec]:
    return [matrix(f"{name}.weight", n_out, n_in, gain), vector(f"{name}.bias", n_out, 0.1)]


def _embeddings(shape: VisionShape) -> list[TensorSpec]:
    kernel = (shape.n_embd, 3, shape.patch_size, shape.patch_size)
    std = 1.0 / math.sqrt(3 * shape.patch_size**2)
    tensors = [TensorSpec(name="v.patch_embd.weight", shape=kernel, std=std)]
    if shape.layout.startswith("qwen"):  # the second frame of a still image is the first again
        tensors.append(TensorSpec(name="v.patch_embd.weight.1", shape=kernel, std=std))
    if shape.layout in ("mlp", "qwen3vl", "gemma3"):
        tensors.append(vector("v.patch_embd.bias", shape.n_embd, 0.1))
    if shape.layout == "mlp-cls":
        tensors.append(vector("v.class_embd", shape.n_embd, 1.0))
        tensors += _layer_norm("v.pre_ln", shape.n_embd)
    if shape.layout == "gemma4v":
        table = (2, _N_POSITIONS, shape.n_embd)
        tensors.append(
            TensorSpec(name="v.position_embd.weight", shape=table, std=0.5, keep_f32=True)
        )
    elif shape.layout not in ("qwen2vl", "pixtral", "mistral3"):
        n_pos = shape.n_patches + (1 if shape.layout == "mlp-cls" else 0)
        name, table = "v.position_embd.weight", (n_pos, shape.n_embd)
        tensors.append(TensorSpec(name=name, shape=table, std=0.5, keep_f32=True))
    return tensors


def _block(shape: VisionShape, il: int) -> list[TensorSpec]:
    pre, n_embd, n_ff = f"v.blk.{il}.", shape.n_embd, shape.n_ff
    if shape.layout in _RMS_NORM:
        return _plain_block(shape, pre)
    qk_gain = math.sqrt(2.0)
    tensors = _layer_norm(pre + "ln1", n_embd) + _layer_norm(pre + "ln2", n_embd)
    if shape.layout == "qwen3vl":
        tensors += _linear(pre + "attn_qkv", 3 * n_embd, n_embd, qk_gain)
    else:
        tensors += _linear(pre + "attn_q", n_embd, n_embd, qk_gain)
        tensors += _linear(pre + "attn_k", n_embd, n_embd, qk_gain)
        tensors += _linear(pre + "attn_v", n_embd, n_embd)
    tensors += _linear(pre + "attn_out", n_embd, n_embd)
    tensors += _linear(pre + "ffn_up", n_ff, n_embd)
    tensors += _linear(pre + "ffn_down", n_embd, n_ff)
    if shape.layout == "qwen3vl" and 1 <= il <= shape.n_deepstack:
        merged, deep = n_embd * shape.merge**2, f"v.deepstack.{il}."
        tensors += _layer_norm(deep + "norm", merged)
        tensors += _linear(deep + "fc1", merged, merged)
        tensors += _linear(deep + "fc2", shape.n_embd_text, merged, 0.8)
    return tensors


def _plain_block(shape: VisionShape, pre: str) -> list[TensorSpec]:
    n_embd, n_ff = shape.n_embd, shape.n_ff
    tensors = [norm(f"{pre}{name}.weight", n_embd) for name in ("ln1", "ln2")]
    for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
        tensors.append(matrix(f"{pre}{name}.weight", n_embd, n_embd, 1.0))
    for name, n_out, n_in in (
        ("ffn_gate", n_ff, n_embd), ("ffn_up", n_ff, n_embd), ("ffn_down", n_embd, n_ff),
    ):  # fmt: skip
        tensors.append(matrix(f"{pre}{name}.weight", n_out, n_in, 1.0))
    return tensors


def _projector(shape: VisionShape) -> list[TensorSpec]:
    n_text = shape.n_embd_text
    if shape.layout == "gemma4v":
        return [matrix("mm.input_projection.weight", n_text, shape.n_embd, 1.0)]
    if shape.layout in ("pixtral", "mistral3"):
        tensors = _linear("mm.1", n_text, shape.n_embd, 1.0) + _linear("mm.2", n_text, n_text, 1.6)
        if shape.layout == "mistral3":
            merged = shape.n_embd * shape.merge**2
            tensors.append(norm("mm.input_norm.weight", shape.n_embd))
            tensors.append(matrix("mm.patch_merger.weight", shape.n_embd, merged, 1.0))
        return [*tensors, vector("v.token_embd.img_break", n_text, 1.0)]
    if shape.layout == "gemma3":  # stored [n_embd, n_text]; llama.cpp transposes it: floats only
        name, std = "mm.input_projection.weight", 1.0 / math.sqrt(shape.n_embd)
        table = (shape.n_embd, n_text)
        weight = TensorSpec(name=name, shape=table, std=std, keep_f32=True)
        return [weight, norm("mm.soft_emb_norm.weight", shape.n_embd)]
    if shape.layout.startswith("qwen"):
        merged = shape.n_embd * shape.merge**2
        return _linear("mm.0", merged, merged) + _linear("mm.2", n_text, merged, 1.6)
    # features are taken before any final norm: their size grows with the square root of the depth
    grown = math.sqrt(1.0 + 0.4 * shape.n_layer)
    return _linear("mm.0", n_text, shape.n_embd, 1.0 / grown) + _linear("mm.2", n_text, n_text, 1.6)
