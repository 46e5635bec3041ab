"""config.json as the published checkpoints have it: in the words of the transformers of their day.

transformers 5 writes another form (`rope_parameters`, sub-configurations, every default) of the
same model and reads both.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Config = dict[str, Any]


def publish(family: str, folder: Path) -> None:
    """Rewrites the config.json of a checkpoint that transformers 5 saved.

    Args:
        family: one of PUBLISHED.
        folder: of the checkpoint.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        for key in ("dtype", "transformers_version"):
            part.pop(key, None)
    path.write_text(json.dumps(PUBLISHED[family](config), indent=2))


def _qwen2_vl(config: Config) -> Config:
    """The language model's settings stand at the top."""
    text, vision = config.pop("text_config"), config["vision_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    for key in ("layer_types", "model_type"):
        del text[key]
    vision["in_chans"] = vision.pop("in_channels")
    vision["spatial_patch_size"] = vision["patch_size"]
    del vision["model_type"]
    return {**{key: value for key, value in text.items() if value is not None}, **config}


def _qwen3_vl(config: Config) -> Config:
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {
        "mrope_interleaved": True,
        "mrope_section": rope["mrope_section"],
        "rope_type": "default",
    }
    return config


def _gemma3(config: Config) -> Config:
    """A pattern for the layers, two settings for their RoPE bases."""
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["full_attention"]["rope_theta"]
    text["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    text["rope_scaling"] = {"rope_type": "linear", "factor": rope["full_attention"]["factor"]}
    text["sliding_window_pattern"] = 6
    for key in ("layer_types", "attn_logit_softcapping", "final_logit_softcapping"):
        del text[key]
    return config


def _smolvlm(config: Config) -> Config:
    """Its encoder's epsilon and nonlinearity are defaults; the language model has another name."""
    text, vision = config["text_config"], config["vision_config"]
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    text["architectures"] = ["VLlama3ForCausalLM"]
    for key in ("layer_norm_eps", "hidden_act"):
        del vision[key]
    return config


def _idefics3(config: Config) -> Config:
    """SmolVLM before it had a class of its own: SmolVLM-Instruct, SmolVLM-256M, SmolVLM-500M."""
    config = _smolvlm(config)
    config |= {"architectures": ["Idefics3ForConditionalGeneration"], "model_type": "idefics3"}
    config["vision_config"]["model_type"] = "idefics3"
    return config


PUBLISHED: dict[str, Callable[[Config], Config]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_vl,
    "qwen3_vl": _qwen3_vl,
    "gemma3": _gemma3,
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
}
