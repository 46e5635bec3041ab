"""LLaVA checkpoints as the original code saves them: llava-hf's tensors under other names.

``LlavaLlamaForCausalLM`` and its kin hold the language model, the projector and sometimes the
vision tower; where it is not inside, config.json names the repository that it comes from. Knows
configurations and names only: :mod:`atp_cpp.convert.original_view` lays the files out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from atp_cpp.errors import ConvertError

__all__ = ["has_tower", "hf_config", "is_original", "known_tower", "preprocessor", "tower_name"]

# classes of the original code whose tensors are LLaVA-1.5's or 1.6's -> type of the text model
_TEXT_TYPES = {
    "LlavaLlamaForCausalLM": "llama",
    "LlavaMistralForCausalLM": "mistral",
    "ShareGPT4VLlamaForCausalLM": "llama",
    "Share4VLlamaForCausalLM": "llama",
}
# classes with another encoder or projector -> what to do instead
_OTHERS = {
    "LlavaQwenForCausalLM": "its encoder is SigLIP's and its tiles are OneVision's (llava-hf has "
    "llava-onevision-…)",
    "LlavaQwen2ForCausalLM": "its encoder is FastVLM's MobileCLIP, which llama.cpp does not have",
    "TinyLlavaForConditionalGeneration": "TinyLLaVA's encoder and projector are its own",
    "MobileLlamaForCausalLM": "MobileVLM's projector is LDP, for llama.cpp's legacy scripts",
    "LlavaMptForCausalLM": "its text model is MPT",
}
_WAY_OUT = "convert the copy in transformers' layout (llava-hf/…), or another model"
_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_LARGE = {
    "hidden_act": "quick_gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
}
# what the configurations of the towers that nearly all of these models use say
_KNOWN_TOWERS = {
    "openai/clip-vit-large-patch14-336": _LARGE | {"image_size": 336},
    "openai/clip-vit-large-patch14": _LARGE | {"image_size": 224},
}


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is in this layout, and of a kind that can be converted.

    Raises:
        ConvertError: it is in a layout of this family that cannot be, with the way out.
    """
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else ""
    if name in _OTHERS:
        raise ConvertError(f"{name} is a layout of its own: {_OTHERS[name]}; {_WAY_OUT}")
    if name not in _TEXT_TYPES:
        if "mm_vision_tower" in config or str(name).startswith("Bunny"):
            raise ConvertError(
                f"{name} is a layout of its own, of LLaVA's family; of those, "
                f"{' and '.join(list(_TEXT_TYPES)[:2])} are converted; {_WAY_OUT}"
            )
        return False
    tower = config.get("mm_vision_tower", config.get("vision_tower"))
    checks = (
        ("mm_vision_tower", tower, isinstance(tower, str) and bool(tower), "a name"),
        ("mm_projector_type", *_choice(config, "mm_projector_type", "linear", "mlp2x_gelu")),
        ("mm_vision_select_feature", *_choice(config, "mm_vision_select_feature", None, "patch")),
        ("mm_use_im_start_end", *_choice(config, "mm_use_im_start_end", None, False)),
        (
            "image_aspect_ratio",
            *_choice(config, "image_aspect_ratio", None, "pad", "square", "anyres"),
        ),
    )
    for key, value, right, expected in checks:
        if not right:
            raise ConvertError(
                f"{name} (LLaVA's original layout): {key} is {value!r}; expected {expected}: of "
                f"this layout models shaped as LLaVA-1.5 and 1.6 are converted; {_WAY_OUT}"
            )
    pinpoints = config.get("image_grid_pinpoints")
    if _tiled(config) and not isinstance(pinpoints, list):
        raise ConvertError(
            f"{name} (LLaVA's original layout): image_grid_pinpoints is {pinpoints!r}; expected "
            f"[[width, height], …]; {_WAY_OUT}"
        )
    if _tiled(config) and config.get("mm_patch_merge_type") != "spatial_unpad":
        raise ConvertError(
            f"{name} (LLaVA's original layout): images are cut into tiles and mm_patch_merge_type "
            f"is {config.get('mm_patch_merge_type')!r}; expected 'spatial_unpad'; {_WAY_OUT}"
        )
    return True


def tower_name(config: Mapping[str, Any]) -> str:
    """The repository or folder that the vision tower comes from."""
    return str(config.get("mm_vision_tower") or config.get("vision_tower"))


def has_tower(names: Collection[str]) -> bool:
    """Whether the tower is among the checkpoint's tensors."""
    return any("vision_tower." in name for name in names)


def known_tower(name: str) -> dict[str, Any] | None:
    """The configuration of a tower that need not be fetched for it."""
    return _KNOWN_TOWERS.get(name)


def hf_config(config: Mapping[str, Any], tower: Mapping[str, Any]) -> dict[str, Any]:
    """The same model's config.json as transformers has it.

    Args:
        config: of the checkpoint.
        tower: the vision encoder's configuration.

    Raises:
        ConvertError: the encoder is not CLIP's.
    """
    vision = dict(tower.get("vision_config") or tower)
    kind = vision.setdefault("model_type", "clip_vision_model")
    if kind not in ("clip_vision_model", "clip"):
        raise ConvertError(
            f"{tower_name(config)} is {kind!r}; of LLaVA's original layout models with CLIP's "
            f"encoder are converted; {_WAY_OUT}"
        )
    tiled = _tiled(config)
    class_name = config["architectures"][0]
    text = {k: v for k, v in config.items() if not k.startswith(("mm_", "image_", "tune_"))}
    text |= {"model_type": _TEXT_TYPES[class_name]}
    for key in ("architectures", "auto_map", "vision_tower", "use_mm_proj", "_name_or_path"):
        text.pop(key, None)
    kinds = ("llava_next", "LlavaNext") if tiled else ("llava", "Llava")
    made = {
        "architectures": [f"{kinds[1]}ForConditionalGeneration"],
        "model_type": kinds[0],
        "image_token_index": max(int(config.get("vocab_size", 1)) - 1, 0),
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "torch_dtype": config.get("torch_dtype"),
        "vision_config": vision | {"model_type": "clip_vision_model"},
        "vision_feature_layer": config.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": "default",
    }
    if tiled:  # (width, height) there, (height, width) in transformers
        made["image_grid_pinpoints"] = [[h, w] for w, h in config["image_grid_pinpoints"]]
    return made


def preprocessor(config: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """preprocessor_config.json: how the original code prepares images.

    Args:
        config: of the checkpoint.
        made: what `hf_config` made of it.
    """
    side = made["vision_config"].get("image_size", 224)
    images = {
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": _MEAN,
        "image_std": _STD,
        "resample": 3,
        "size": {"shortest_edge": side},
    }
    if _tiled(config):
        pinpoints = {"image_grid_pinpoints": made["image_grid_pinpoints"]}
        return images | pinpoints | {"image_processor_type": "LlavaNextImageProcessor"}
    if config.get("image_aspect_ratio") == "pad":
        return images | {"do_pad": True, "image_processor_type": "LlavaImageProcessor"}
    return images | {"image_processor_type": "CLIPImageProcessor"}


def _tiled(config: Mapping[str, Any]) -> bool:
    return config.get("image_aspect_ratio") == "anyres"


def _choice(
    config: Mapping[str, Any], key: str, default: object, *allowed: object
) -> tuple[object, bool, str]:
    """The value, whether it can be converted (None: the default does), and what can."""
    value = config.get(key, default)
    return value, value is None or value in allowed, " or ".join(map(repr, allowed))
