"""Seeded tiny random checkpoints of the families that llama.cpp converts, in Hugging Face's format.

Every one has grouped heads, several layers of each kind, and what is special about its family:
windows, deepstack, pooling, pixel shuffle, tiles, positions of three sections. The weights are
scaled so that the residual stream stays near unit variance and attention differs from token to
token: a mistake in a position, a window or an order shows in every output.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.tiny_tokenizer_kinds import KINDS
from support.tiny_tokenizers import write_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# family -> its tokenizer in tiny_tokenizers.py. internvl is the layout of the original remote code,
# which llama.cpp converts; internvl_hf holds the same weights as transformers lays them out.
TOKENIZERS = {
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_vl",
    "qwen3_vl": "qwen2_vl",
    "gemma3": "gemma",
    "smolvlm": "smolvlm",
    "internvl": "internvl",
    "internvl_hf": "internvl",
}
FAMILIES = tuple(TOKENIZERS)
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
PATCH = 14
TILE = 8 * PATCH  # a tile of SmolVLM and InternVL, the picture of Gemma 3
QK_GAIN = 1.6
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073]}
CLIP["image_std"] = [0.26862954, 0.26130258, 0.27577711]
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SQUARE = {"height": TILE, "width": TILE}
_QWEN2_IMAGES = CLIP | {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": PATCH,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
_INTERNVL_IMAGES = IMAGENET | {
    "image_processor_type": "GotOcr2ImageProcessor",
    "crop_to_patches": True,
    "min_patches": 1,
    "max_patches": 12,
    "size": SQUARE,
    "resample": 3,
}
# what preprocessor_config.json says, with the sizes of the tiny encoders
IMAGES: dict[str, dict[str, Any]] = {
    "qwen2_vl": _QWEN2_IMAGES,
    "qwen2_5_vl": _QWEN2_IMAGES,
    "qwen3_vl": HALF
    | {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
    },
    "gemma3": HALF
    | {
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": 16,
        "resample": 2,
        "size": SQUARE,
    },
    "smolvlm": HALF
    | {
        "image_processor_type": "SmolVLMImageProcessor",
        "do_image_splitting": True,
        "max_image_size": {"longest_edge": TILE},
        "resample": 1,
        "size": {"longest_edge": 4 * TILE},
    },
    "internvl": _INTERNVL_IMAGES,
    "internvl_hf": _INTERNVL_IMAGES,
}


def write_tiny(family: str, folder: Path, seed: int = 0) -> PreTrainedModel:
    """Writes a checkpoint as people hold it: weights, configurations, tokenizer.

    Args:
        family: one of FAMILIES.
        folder: where; made if missing.
        seed: of the weights; families differ, the same family and seed are the same bytes.

    Returns:
        The model itself, in F32 with plain attention, ready to compare with.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    tokenizer = write_tokenizer(folder, TOKENIZERS[family])
    config = CONFIGS[family](tokenizer.ids, tokenizer.n_tokens)
    for end in ("bos", "eos", "pad"):
        token = getattr(KINDS[tokenizer.kind], end)
        setattr(config.text_config, f"{end}_token_id", tokenizer.ids[token] if token else None)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    draw_weights(model, seed)
    model.save_pretrained(folder)
    _rewrite_as_published(family, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES[family], indent=2))
    return model


def _qwen2_vl(ids: dict[str, int], n_vocab: int) -> PretrainedConfig:
    """Qwen2-VL: full attention in the encoder, positions of three sections."""
    from transformers import Qwen2VLConfig

    vision = {"depth": 4, "embed_dim": 64, "num_heads": 2, "hidden_size": 64, "patch_size": PATCH}
    return Qwen2VLConfig(vision_config=vision, text_config=_qwen_text(n_vocab), **_qwen_tokens(ids))


def _qwen2_5_vl(ids: dict[str, int], n_vocab: int) -> PretrainedConfig:
    """Qwen2.5-VL: windows of 4 x 4 image tokens in every second encoder layer."""
    from transformers import Qwen2_5_VLConfig

    vision = {
        "depth": 4,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": PATCH,
        "window_size": 112,
        "fullatt_block_indexes": [1, 3],
    }
    return Qwen2_5_VLConfig(
        vision_config=vision, text_config=_qwen_text(n_vocab), **_qwen_tokens(ids)
    )


def _qwen3_vl(ids: dict[str, int], n_vocab: int) -> PretrainedConfig:
    """Qwen3-VL: learned positions that are interpolated, features into two decoder layers."""
    from transformers import Qwen3VLConfig

    vision = {
        "depth": 4,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 16,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 2],
    }
    text = _qwen_text(n_vocab) | {"head_dim": 16}
    return Qwen3VLConfig(vision_config=vision, text_config=text, **_qwen_tokens(ids))


def _qwen_text(n_vocab: int) -> dict[str, Any]:
    rope = ROPE | {"mrope_section": [2, 3, 3]}
    return TEXT | {"vocab_size": n_vocab, "rope_parameters": rope}


def _qwen_tokens(ids: dict[str, int]) -> dict[str, Any]:
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def _gemma3(ids: dict[str, int], n_vocab: int) -> PretrainedConfig:
    """Gemma 3: SigLIP pooled to 4 x 4 tokens, a window of 24 tokens in all layers but the sixth."""
    from transformers import Gemma3Config

    vision = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": TILE,
        "patch_size": PATCH,
        "vision_use_head": False,
    }
    local, whole = "sliding_attention", "full_attention"
    text = TEXT | {
        "vocab_size": n_vocab,
        "num_hidden_layers": 7,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 24,
        "layer_types": [local] * 5 + [whole, local],
        "rope_parameters": {
            local: ROPE,
            whole: {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        },
    }
    return Gemma3Config(
        vision_config=vision,
        text_config=text,
        mm_tokens_per_image=16,
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
        image_token_index=ids["<image_soft_token>"],
    )


def _smolvlm(ids: dict[str, int], n_vocab: int) -> PretrainedConfig:
    """SmolVLM: tiles of 8 x 8 patches, pixel shuffle to 4 x 4 tokens, a llama."""
    from transformers import SmolVLMConfig

    vision = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": TILE,
        "patch_size": PATCH,
    }
    text = TEXT | {"model_type": "llama", "vocab_size": n_vocab, "rope_parameters": ROPE}
    return SmolVLMConfig(
        vision_config=vision, text_config=text, scale_factor=2, image_token_id=ids["<image>"]
    )


def _internvl(ids: dict[str, int], n_vocab: int) -> PretrainedConfig:
    """InternVL: class token, layer scale, pixel shuffle to 4 x 4 tokens, a qwen2."""
    from transformers import InternVLConfig

    vision = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": [TILE, TILE],
        "patch_size": [PATCH, PATCH],
        "attention_bias": True,
    }
    text = TEXT | {"model_type": "qwen2", "vocab_size": n_vocab, "rope_parameters": ROPE}
    return InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=16,
        tie_word_embeddings=False,
    )


CONFIGS: dict[str, Callable[[dict[str, int], int], PretrainedConfig]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "gemma3": _gemma3,
    "smolvlm": _smolvlm,
    "internvl": _internvl,
    "internvl_hf": _internvl,
}


def draw_weights(model: PreTrainedModel, seed: int) -> None:
    """Fills the model: unit-variance residuals, peaked attention, norms that differ by channel."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                _draw_vector(name, weight, shift="gemma3" in model.config.model_type)
            elif "embed_tokens" in name:
                # Gemma multiplies by the square root of the width
                scale = weight.shape[1] ** -0.5 if "gemma3" in model.config.model_type else 1.0
                weight.normal_(std=scale)
            elif "position_embedding" in name or "pos_embed" in name or "cls_token" in name:
                weight.normal_(std=0.7)
            else:
                # Gemma's projector multiplies from the right: its matrix is square here
                gain = QK_GAIN if ("q_proj" in name or "k_proj" in name or "qkv" in name) else 1.0
                weight.normal_(std=gain * weight[0].numel() ** -0.5)


def _draw_vector(name: str, vector: Any, shift: bool) -> None:
    if name.endswith("bias"):
        vector.normal_(std=0.2)
    elif shift and ".post_" in name:
        vector.uniform_(0.5, 1.5)  # what blocks add outweighs the embedding, which is tied
    elif "vision" in name or "visual" in name or not shift:
        vector.uniform_(0.5, 1.5)
    else:
        vector.uniform_(-0.5, 0.5)  # Gemma adds one


def _published_name(family: str, name: str) -> str:
    """The tensor's name in the checkpoints that people hold, where transformers saves another."""
    if family == "gemma3" and name.startswith("vision_tower."):
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    if family != "internvl":
        return name
    for theirs, published in INTERNVL_NAMES:
        name = name.replace(theirs, published)
    return name


INTERNVL_NAMES = (
    ("vision_tower.embeddings.cls_token", "vision_model.embeddings.class_embedding"),
    ("vision_tower.embeddings.position_embeddings", "vision_model.embeddings.position_embedding"),
    (
        "vision_tower.embeddings.patch_embeddings.projection",
        "vision_model.embeddings.patch_embedding",
    ),
    ("vision_tower.encoder.layer.", "vision_model.encoder.layers."),
    ("attention.projection_layer", "attn.proj"),
    ("attention.", "attn."),
    ("lambda_", "ls"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("multi_modal_projector.layer_norm", "mlp1.0"),
    ("multi_modal_projector.linear_1", "mlp1.1"),
    ("multi_modal_projector.linear_2", "mlp1.3"),
)


def _rewrite_as_published(family: str, folder: Path) -> None:
    """Renames the saved tensors; InternVL's original layout also joins q, k and v."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    saved = {_published_name(family, name): value for name, value in load_file(path).items()}
    if family == "internvl":
        for name in [name for name in saved if ".attn.q_proj." in name]:
            parts = [saved.pop(name.replace("q_proj", f"{x}_proj")) for x in "qkv"]
            saved[name.replace("q_proj", "qkv")] = torch.cat(parts)
        _write_internvl_config(folder)
    save_file({k: v.contiguous() for k, v in saved.items()}, path, metadata={"format": "pt"})


def _write_internvl_config(folder: Path) -> None:
    """The config of the original remote code, from the one that transformers saved."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    theirs, text = config["vision_config"], config["text_config"]
    vision = {
        key: theirs[key]
        for key in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "hidden_act",
            "layer_norm_eps",
            "norm_type",
        )
    }
    vision |= {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "image_size": theirs["image_size"][0],
        "patch_size": theirs["patch_size"][0],
        "qkv_bias": True,
        "qk_normalization": False,
    }
    original = {
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        },
        "model_type": "internvl_chat",
        "llm_config": text | {"architectures": ["Qwen2ForCausalLM"]},
        "vision_config": vision,
        "downsample_ratio": 0.5,
        "force_image_size": vision["image_size"],
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "ps_version": "v2",
        "select_layer": -1,
    }
    path.write_text(json.dumps(original, indent=2))
