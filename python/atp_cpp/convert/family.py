"""What kind of vision-language model a checkpoint is, and whether we can write it exactly.

Knows configurations only: no weights, no torch, no GGUF. LLaVA checkpoints get a projector file of
our own writing; everything else passes through llama.cpp's converter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from atp_cpp.errors import ConvertError

LLAVA = {
    "LlavaForConditionalGeneration": "LLaVA-1.5",
    "LlavaNextForConditionalGeneration": "LLaVA-NeXT",
    "LlavaOnevisionForConditionalGeneration": "LLaVA-OneVision",
}
# the encoder's nonlinearity -> llama.cpp's name for it; its "gelu" is the tanh form
_ENCODER_ACTS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu"}
_PROJECTOR_ACTS = ("gelu", "gelu_pytorch_tanh")
# encoder -> whether a class token stands before the patches
_ENCODERS = {"clip_vision_model": True, "siglip_vision_model": False}
# what converters loop over -> far more than any model has
_MOST = {
    **dict.fromkeys(("num_hidden_layers", "depth", "num_experts", "num_local_experts"), 10_000),
    "vocab_size": 4_000_000,
}


@dataclass(frozen=True, slots=True)
class Encoder:
    """The part of a LLaVA vision encoder that is used.

    Attributes:
        n_layer: blocks up to the deepest layer whose output is used; deeper ones are left out.
        feature_layers: blocks after which features are taken, in the order they are joined.
        act: nonlinearity, by llama.cpp's name.
        anyres: images are cut into tiles.
    """

    n_layer: int
    feature_layers: tuple[int, ...]
    act: str
    anyres: bool


def architecture(config: Mapping[str, Any]) -> str:
    """The name of the model's class in transformers.

    Raises:
        ConvertError: the configuration names none.
    """
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ConvertError(
            'config.json names no architecture (expected "architectures": ["Llava…"]); '
            "save the model with save_pretrained and convert that folder"
        )
    return names[0]


def check_counts(config: Mapping[str, Any]) -> None:
    """Refuses counts that no model has, over which a converter would loop for ever.

    Args:
        config: of config.json, as it stands there.

    Raises:
        ConvertError: the key, its value and the bound.
    """
    sections = {"": config}
    sections |= {f"{k}.": part for k, part in config.items() if isinstance(part, Mapping)}
    for where, section in sections.items():
        for key, most in _MOST.items():
            value = section.get(key)
            if isinstance(value, (int, float)) and not value <= most:
                raise ConvertError(
                    f"config.json: {where}{key} is {value}; expected at most {most}; get that file "
                    "again"
                )


def check_origin(config: Mapping[str, Any], formats: Collection[str]) -> None:
    """Refuses weights that another program has quantised, by that program's name.

    Args:
        config: of config.json.
        formats: what the weight files say of themselves ("pt", "mlx").

    Raises:
        ConvertError: MLX, or bitsandbytes, and where the weights are that can be converted.
    """
    ours = config.get("quantization_config")
    method = ours.get("quant_method") if isinstance(ours, Mapping) else None
    packed = config.get("quantization")
    if isinstance(packed, Mapping) and "bits" in packed and "group_size" in packed:
        raise ConvertError(
            f"the weights are MLX's, quantised to {packed['bits']} bits; convert the checkpoint "
            "that they were made from"
        )
    if "mlx" in formats:
        raise ConvertError(
            "the weights are MLX's, which lays tensors out in other orders; convert the checkpoint "
            "that they were made from"
        )
    if method == "bitsandbytes":
        raise ConvertError(
            "the weights were quantised by bitsandbytes, which llama.cpp's converter cannot read; "
            "convert the checkpoint that they were made from, or save the model after "
            "model.dequantize()"
        )


def check_supported(config: Mapping[str, Any], *, text: bool, vision: bool) -> None:
    """Raises ConvertError unless a checkpoint is one that we, or llama.cpp, can convert.

    Args:
        config: of config.json.
        text: llama.cpp converts its language model.
        vision: llama.cpp converts its vision part.
    """
    if is_llava(config) or (text and vision):
        return
    name = architecture(config)
    if text:
        raise ConvertError(
            f"{name} is a text model, or one whose vision part llama.cpp cannot convert; expected "
            "a vision-language model (for text alone there is llama.cpp's convert_hf_to_gguf.py)"
        )
    raise ConvertError(
        f"{name} is neither a LLaVA model nor one that this version of llama.cpp converts; "
        "docs/guide/convert.md lists the families"
    )


def is_llava(config: Mapping[str, Any]) -> bool:
    """Whether we write the projector file. Pixtral calls itself LLaVA, too; llama.cpp knows it."""
    vision = config.get("vision_config") or {}
    return architecture(config) in LLAVA and vision.get("model_type") != "pixtral"


def llava_encoder(config: Mapping[str, Any]) -> Encoder:
    """How the features of a LLaVA checkpoint are taken from its encoder.

    Args:
        config: complete, with the defaults that transformers fills in.

    Raises:
        ConvertError: something that llama.cpp's encoder cannot compute, by name.
    """
    vision = config["vision_config"]
    kind = vision["model_type"]
    if kind not in _ENCODERS:
        raise ConvertError(
            f"the vision encoder is {kind}; of LLaVA models those with "
            f"{' or '.join(_ENCODERS)} can be converted"
        )
    _check_choice("vision_config.hidden_act", vision["hidden_act"], tuple(_ENCODER_ACTS))
    _check_choice("projector_hidden_act", config["projector_hidden_act"], _PROJECTOR_ACTS)
    strategy = config["vision_feature_select_strategy"]
    expected = "default" if _ENCODERS[kind] else "full"
    if strategy != expected:
        raise ConvertError(
            f"vision_feature_select_strategy is {strategy!r}; with {kind} only {expected!r} can be "
            "converted: llama.cpp passes on the patches, all of them and nothing else"
        )
    layers = _feature_layers(config["vision_feature_layer"], vision["num_hidden_layers"])
    return Encoder(
        n_layer=max(layers),
        feature_layers=layers,
        act=_ENCODER_ACTS[vision["hidden_act"]],
        anyres=bool(config.get("image_grid_pinpoints")),
    )


def _feature_layers(given: int | list[int], n_layer: int) -> tuple[int, ...]:
    """Indices into transformers' hidden states (0: before the first block) as block counts."""
    wanted = given if isinstance(given, list) else [given]
    layers = tuple(n_layer + 1 + layer if layer < 0 else layer for layer in wanted)
    if not layers or min(layers) < 1 or max(layers) > n_layer:
        raise ConvertError(
            f"vision_feature_layer is {given}; expected layers of an encoder with {n_layer} blocks "
            f"(1 … {n_layer}, or -1 … -{n_layer} from its end)"
        )
    if list(layers) != sorted(set(layers)):
        raise ConvertError(
            f"vision_feature_layer is {given}; llama.cpp joins features in the order of depth only"
        )
    return layers


def _check_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConvertError(f"{what} is {value!r}; {' or '.join(choices)} can be converted")
