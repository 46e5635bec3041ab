"""Seeded tiny random LLaVA checkpoints of every kind, in Hugging Face's format.

What differs: encoder (CLIP with its class token, SigLIP without), how many blocks of it are used,
language model, tokenizer, and whether images are cut into tiles.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.hf_models import CLIP, HALF, TEXT, draw_weights
from support.tiny_tokenizer_kinds import KINDS as TOKENIZERS
from support.tiny_tokenizers import TinyTokenizer, write_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PATCH = 14
SIDE = 6  # image tokens in a row of one tile
TILE = SIDE * PATCH  # px
# (height, width), as LLaVA-NeXT has them for its tile
PINPOINTS = [[TILE * h, TILE * w] for h, w in ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))]
# OneVision's grids are far larger; these make room for its shrinking ("anyres_max_N")
PINPOINTS_OV = [[TILE * h, TILE * w] for h in range(1, 5) for w in range(1, 5)]


@dataclass(frozen=True)
class Kind:
    """What sets one kind apart."""

    config: str  # its configuration class in transformers
    text: str  # type of the language model
    tokenizer: str
    clip: bool  # CLIP with a class token, or SigLIP without
    processor: dict[str, Any]
    feature_layer: int | list[int] = -2
    pinpoints: list[list[int]] | None = None


_CROP = {"height": TILE, "width": TILE}
_CLIP_IMAGES = CLIP | {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": TILE},
    "crop_size": _CROP,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "resample": 3,
}
_SIGLIP_IMAGES = HALF | {
    "image_processor_type": "SiglipImageProcessor",
    "size": _CROP,
    "resample": 3,
}
_NEXT_IMAGES = _CLIP_IMAGES | {
    "image_processor_type": "LlavaNextImageProcessor",
    "image_grid_pinpoints": PINPOINTS,
}
_OV_IMAGES = HALF | {
    "image_processor_type": "LlavaOnevisionImageProcessor",
    "image_grid_pinpoints": PINPOINTS_OV,
    "size": _CROP,
    "resample": 3,
}
KINDS = {
    "llava-1.5": Kind("LlavaConfig", "llama", "llama", True, _CLIP_IMAGES),
    "llava-1.5-mistral": Kind("LlavaConfig", "mistral", "mistral", True, _CLIP_IMAGES),
    "llava-1.5-qwen2": Kind("LlavaConfig", "qwen2", "qwen2_llava", True, _CLIP_IMAGES),
    "llava-1.5-layers": Kind("LlavaConfig", "llama", "llama3", True, _CLIP_IMAGES, [1, 3]),
    "llava-siglip": Kind("LlavaConfig", "qwen2", "qwen2_llava", False, _SIGLIP_IMAGES),
    "llava-next": Kind("LlavaNextConfig", "mistral", "mistral", True, _NEXT_IMAGES, -2, PINPOINTS),
    "llava-onevision": Kind(
        "LlavaOnevisionConfig", "qwen2", "qwen2_llava", False, _OV_IMAGES, -1, PINPOINTS_OV
    ),
}


def write_llava(kind: str, folder: Path, seed: int = 0) -> PreTrainedModel:
    """Writes a checkpoint.

    Args:
        kind: one of KINDS.
        folder: where; made if missing.
        seed: of the weights; the same kind and seed are the same bytes.

    Returns:
        The model itself, in F32 with plain attention, ready to compare with.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    made = KINDS[kind]
    tokenizer = write_tokenizer(folder, made.tokenizer)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(
        _config(made, tokenizer), attn_implementation="eager"
    ).eval()
    draw_weights(model, seed)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(made.processor, indent=2))
    processor = {
        "processor_class": made.config.replace("Config", "Processor"),
        "vision_feature_select_strategy": "default" if made.clip else "full",
    }
    if made.config == "LlavaOnevisionConfig":
        processor |= {"num_image_tokens": SIDE * SIDE, "vision_aspect_ratio": "anyres_max_2"}
    else:
        processor |= {"patch_size": PATCH, "num_additional_image_tokens": int(made.clip)}
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2))
    return model


def _config(made: Kind, tokenizer: TinyTokenizer) -> PretrainedConfig:
    import transformers

    ids = tokenizer.ids
    ends = {}
    for end in ("bos", "eos", "pad"):
        token = getattr(TOKENIZERS[made.tokenizer], end)
        ends[f"{end}_token_id"] = ids[token] if token else None
    options = {
        "image_token_index": ids["<image>"],
        "vision_config": _vision(made),
        "text_config": TEXT | _text(made, tokenizer.n_tokens) | ends,
        "vision_feature_layer": made.feature_layer,
        "vision_feature_select_strategy": "default" if made.clip else "full",
        "tie_word_embeddings": False,
    }
    if made.pinpoints:
        options["image_grid_pinpoints"] = made.pinpoints
    if made.config == "LlavaOnevisionConfig":
        options |= {"vision_aspect_ratio": "anyres_max_2", "video_token_index": ids["<video>"]}
    else:
        options["image_seq_length"] = SIDE * SIDE
    return getattr(transformers, made.config)(**options)


def _vision(made: Kind) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model" if made.clip else "siglip_vision_model",
        "hidden_act": "quick_gelu" if made.clip else "gelu_pytorch_tanh",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": TILE,
        "patch_size": PATCH,
    } | ({} if made.clip else {"vision_use_head": False})


def _text(made: Kind, n_tokens: int) -> dict[str, Any]:
    # more rows than the tokenizer has tokens, as the published checkpoints
    return {"model_type": made.text, "vocab_size": -(-n_tokens // 64) * 64 + 64, "head_dim": 16} | (
        {"sliding_window": None} if made.text == "mistral" else {}
    )
