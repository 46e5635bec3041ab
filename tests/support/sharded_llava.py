"""A LLaVA-1.5 folder of any size in BF16 shards, written a tensor at a time, by older names.

Its text model can be as large as wanted; vision tower, projector and tokenizer are tiny. No torch.
"""

import json
import math
import struct
from dataclasses import dataclass

import numpy as np

from support.tiny_llava_hf import copy_processor

SIDE, PATCH, EYE = 4, 14, 32  # image tokens in a row, pixels of one, width of the tower
N_EYE_LAYER = 3
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Shape:
    """Sizes of the text model."""

    n_layer: int
    n_embd: int
    n_ff: int
    n_vocab: int
    head_dim: int = 64

    def text_tensors(self):
        """{name: shape}."""
        root, d = "language_model.model.", self.n_embd
        out = {root + "embed_tokens.weight": (self.n_vocab, d), root + "norm.weight": (d,)}
        for il in range(self.n_layer):
            layer = f"{root}layers.{il}."
            for name in "qkvo":
                out[f"{layer}self_attn.{name}_proj.weight"] = (d, d)
            for name in ("gate", "up"):
                out[f"{layer}mlp.{name}_proj.weight"] = (self.n_ff, d)
            out[f"{layer}mlp.down_proj.weight"] = (d, self.n_ff)
            for name in ("input", "post_attention"):
                out[f"{layer}{name}_layernorm.weight"] = (d,)
        return out | {"language_model.lm_head.weight": (self.n_vocab, d)}

    def eye_tensors(self):
        """{name: shape} of the tower and the projector."""
        root = "vision_tower.vision_model."
        out = {
            root + "embeddings.class_embedding": (EYE,),
            root + "embeddings.patch_embedding.weight": (EYE, 3, PATCH, PATCH),
            root + "embeddings.position_embedding.weight": (SIDE * SIDE + 1, EYE),
        }
        linear = {f"self_attn.{name}_proj": (EYE, EYE) for name in ("q", "k", "v", "out")}
        linear |= {"mlp.fc1": (2 * EYE, EYE), "mlp.fc2": (EYE, 2 * EYE)}
        norms = ["pre_layrnorm", "post_layernorm"]
        for il in range(N_EYE_LAYER):
            layer = f"encoder.layers.{il}."
            norms += [f"{layer}layer_norm1", f"{layer}layer_norm2"]
            for name, shape in linear.items():
                out[f"{root}{layer}{name}.weight"] = shape
                out[f"{root}{layer}{name}.bias"] = shape[:1]
        for name in norms:
            out |= {f"{root}{name}.{part}": (EYE,) for part in ("weight", "bias")}
        for name, n_in in (("linear_1", EYE), ("linear_2", self.n_embd)):
            out[f"multi_modal_projector.{name}.weight"] = (self.n_embd, n_in)
            out[f"multi_modal_projector.{name}.bias"] = (self.n_embd,)
        return out

    @property
    def largest(self):
        """Weights in the largest tensor."""
        return max(math.prod(shape) for shape in self.text_tensors().values())

    def config(self):
        vision = {
            "model_type": "clip_vision_model",
            "hidden_size": EYE,
            "intermediate_size": 2 * EYE,
            "num_hidden_layers": N_EYE_LAYER,
            "num_attention_heads": 2,
            "image_size": PATCH * SIDE,
            "patch_size": PATCH,
        }
        text = {
            "model_type": "llama",
            "vocab_size": self.n_vocab,
            "hidden_size": self.n_embd,
            "intermediate_size": self.n_ff,
            "num_hidden_layers": self.n_layer,
            "num_attention_heads": self.n_embd // self.head_dim,
            "num_key_value_heads": self.n_embd // self.head_dim,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "torch_dtype": "bfloat16",
        }
        return {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "image_token_index": 478,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "text_config": text,
            "vision_config": vision,
        }


def write_sharded_llava(folder, shape, n_shards=3):
    """Writes the folder; the shards are about equally large."""
    folder.mkdir(parents=True)
    copy_processor(folder, PATCH * SIDE)
    (folder / "config.json").write_text(json.dumps(shape.config()))
    tensors = shape.eye_tensors() | shape.text_tensors()
    per_shard = sum(map(math.prod, tensors.values())) / n_shards
    shards, filled = [{}], 0
    for name, size in tensors.items():
        if filled > per_shard and len(shards) < n_shards:
            shards.append({})
            filled = 0
        shards[-1][name] = size
        filled += math.prod(size)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{n_shards:05d}.safetensors"
        write_bf16(folder / name, shard)
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_bf16(path, shapes):
    """A safetensors file of small random numbers; memory stays at one block of a million."""
    rng = np.random.default_rng(5)
    block = (rng.standard_normal(_BLOCK, np.float32) * 0.02).view(np.uint32) >> 16
    block = block.astype("<u2")
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            left = math.prod(shape)
            while left > 0:
                left -= file.write(block[:left].data) // 2
