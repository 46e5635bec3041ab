"""What llama.cpp's converter does not know of checkpoints that it otherwise converts.

Runs in the child process, on llama.cpp's own classes. Five things are missing there: names of
tensors as transformers 5 saves them, the way round in which it saves Qwen3-VL-MoE's experts,
InternVL as transformers lays it out, limits of Qwen-VL's image size, and a word against
configurations whose encoder llama.cpp would compute otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from atp_cpp.convert.family import architecture
from atp_cpp.errors import ConvertError

if TYPE_CHECKING:
    from conversion.base import MmprojModel

INTERNVL_HF = "InternVLForConditionalGeneration"
QWEN_VL = (
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
)
MAX_IMAGE_TOKENS = 4096  # llama.cpp's own limit for Qwen-VL: checkpoints allow four times as many

_TANH_GELU = ("gelu", "gelu_pytorch_tanh")
# architecture -> what llama.cpp takes for granted, by the path in the configuration
_TAKEN_FOR_GRANTED: dict[str, dict[str, tuple[object, ...]]] = {
    "Qwen2VLForConditionalGeneration": {
        "vision_config.hidden_act": ("quick_gelu",),
        "vision_config.spatial_merge_size": (2,),
    },
    "Qwen2_5_VLForConditionalGeneration": {
        "vision_config.hidden_act": ("silu",),
        "vision_config.spatial_merge_size": (2,),
        "vision_config.window_size": (112,),
    },
    "Qwen3VLForConditionalGeneration": {
        "vision_config.hidden_act": _TANH_GELU,
        "vision_config.spatial_merge_size": (2,),
    },
    "Gemma3ForConditionalGeneration": {
        "vision_config.hidden_act": _TANH_GELU,
        "text_config.hidden_activation": _TANH_GELU,
    },
    "SmolVLMForConditionalGeneration": {"vision_config.hidden_act": _TANH_GELU},
    "Idefics3ForConditionalGeneration": {"vision_config.hidden_act": _TANH_GELU},
    "InternVLChatModel": {"ps_version": ("v2",), "select_layer": (-1,)},
    INTERNVL_HF: {
        "projector_hidden_act": _TANH_GELU,
        "vision_feature_layer": (-1,),
        "vision_feature_select_strategy": ("default",),
    },
}
# families that were compared with transformers
CHECKED = frozenset(_TAKEN_FOR_GRANTED) - {"Idefics3ForConditionalGeneration"}
# architecture -> tensors as transformers 5 saves them, as llama.cpp knows them
_NAMES: dict[str, dict[str, str]] = {
    "Gemma3ForConditionalGeneration": {
        f"vision_tower.{part}.": f"vision_tower.vision_model.{part}."
        for part in ("embeddings", "encoder", "post_layernorm")
    },
    INTERNVL_HF: {name: f"model.{name}" for name in ("vision_tower.", "multi_modal_projector.")},
    "Lfm2VlForConditionalGeneration": {
        f"model.vision_tower.{part}.": f"vision_tower.vision_model.{part}."
        for part in ("embeddings", "encoder", "post_layernorm")
    },
}


def check_configuration(config: Mapping[str, Any]) -> None:
    """Refuses what llama.cpp would read, and compute otherwise than transformers.

    Args:
        config: complete, with the defaults that transformers fills in.

    Raises:
        ConvertError: a value that it cannot have, with those that it can.
    """
    name = architecture(config)
    for path, allowed in _TAKEN_FOR_GRANTED.get(name, {}).items():
        value: Any = config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None and value not in allowed:
            choices = " or ".join(repr(choice) for choice in allowed)
            raise ConvertError(f"{path} is {value!r}; llama.cpp computes {choices} here")
    if name == "Gemma3ForConditionalGeneration":
        _check_gemma3(config["text_config"])


def _check_gemma3(text: Mapping[str, Any]) -> None:
    """Every sixth layer sees everything, the others a window; one scale of the queries."""
    expected = ["sliding_attention"] * 5 + ["full_attention"]
    for number, kind in enumerate(text.get("layer_types") or ()):
        if kind != expected[number % 6]:
            raise ConvertError(
                f"text_config.layer_types[{number}] is {kind!r}; llama.cpp computes "
                f"{expected[number % 6]!r} here"
            )
    head = text.get("head_dim", 256)
    if text.get("num_hidden_layers") == 62:  # the 27B model
        head = text["hidden_size"] // text["num_attention_heads"]
    if (scalar := text.get("query_pre_attn_scalar", head)) != head:
        raise ConvertError(
            f"text_config.query_pre_attn_scalar is {scalar}; llama.cpp computes {head} here"
        )


def mmproj_class(config: Mapping[str, Any]) -> type[MmprojModel]:
    """llama.cpp's class for the vision part of a model, with what it lacks.

    Args:
        config: of the model, its parts named as llama.cpp asks for them.

    Raises:
        NotImplementedError: llama.cpp has none.
    """
    from conversion import get_model_architecture, get_model_class
    from conversion.base import ModelType

    name = architecture(config)
    upstream: Any = get_model_class(get_model_architecture(config, ModelType.MMPROJ), mmproj=True)
    members: dict[str, Any] = {"model_arch": upstream.model_arch}
    if names := _NAMES.get(name):
        members["filter_tensors"] = classmethod(_renaming(upstream, names))
    if name in QWEN_VL:
        members["set_gguf_parameters"] = _with_pixel_limits(upstream)
    if name == INTERNVL_HF:
        members["set_gguf_parameters"] = _with_tile_limits(upstream)
    return type(upstream.__name__, (upstream,), members)


def _renaming(upstream: Any, names: Mapping[str, str]) -> Callable[[Any, Any], Any]:
    def filter_tensors(cls: Any, item: tuple[str, Any]) -> Any:
        name, generate = item
        for saved, known in names.items():
            if name.startswith(saved):
                name = known + name.removeprefix(saved)
        return upstream.filter_tensors.__func__(cls, (name, generate))

    return filter_tensors


def _with_pixel_limits(upstream: Any) -> Callable[[Any], None]:
    """Writes the smallest and largest image; libmtmd has limits of its own without them."""

    def set_gguf_parameters(self: Any) -> None:
        upstream.set_gguf_parameters(self)
        config = self.preprocessor_config
        size = config.get("size") or {}
        smallest = config.get("min_pixels") or size.get("shortest_edge")
        largest = config.get("max_pixels") or size.get("longest_edge")
        vision = self.hparams_vision
        token = (vision["patch_size"] * vision["spatial_merge_size"]) ** 2
        if smallest:
            self.gguf_writer.add_vision_min_pixels(min(smallest, MAX_IMAGE_TOKENS * token))
        if largest:
            self.gguf_writer.add_vision_max_pixels(min(largest, MAX_IMAGE_TOKENS * token))

    return set_gguf_parameters


def _with_tile_limits(upstream: Any) -> Callable[[Any], None]:
    """The number of tiles, which transformers keeps with its image processor."""

    def set_gguf_parameters(self: Any) -> None:
        config = self.preprocessor_config
        self.min_dynamic_tiles = config.get("min_patches", 1)
        self.max_dynamic_tiles = config.get("max_patches", 12)
        upstream.set_gguf_parameters(self)

    return set_gguf_parameters


def text_class(upstream: Any, config: Mapping[str, Any]) -> Any:
    """llama.cpp's class for the language model, with what it lacks.

    Args:
        upstream: the class.
        config: of the checkpoint.
    """
    if upstream.__name__ != "Qwen3VLMoeTextModel":
        return upstream
    text = config.get("text_config") or config
    sizes = text["hidden_size"], text["moe_intermediate_size"]

    def modify_tensors(self: Any, data: Any, name: str, bid: int | None) -> Any:
        return upstream.modify_tensors(self, published_experts(data, name, *sizes), name, bid)

    members = {"model_arch": upstream.model_arch, "modify_tensors": modify_tensors}
    return type(upstream.__name__, (upstream,), members)


def published_experts(data: Any, name: str, width: int, inner: int) -> Any:
    """Qwen3-VL-MoE's experts as they are published: rows in, columns out; else transposed.

    transformers 5 saves them the other way round.

    Args:
        data: a tensor of the checkpoint, [expert, in, out] as published.
        name: its name; those that are no experts stay as they are.
        width: of the hidden state.
        inner: width of an expert.

    Raises:
        ConvertError: both ways have the same shape.
    """
    part = name.removesuffix(".weight").rsplit(".", 1)[-1]
    ends = {"gate_up_proj": (width, 2 * inner), "down_proj": (inner, width)}
    if ".experts." not in name or part not in ends or len(data.shape) != 3:
        return data
    expected = ends[part]
    if expected[0] == expected[1]:
        raise ConvertError(
            f"{name} is {list(data.shape)}: it cannot be told which way round it lies; expected "
            "experts whose two sides differ"
        )
    return data.permute(0, 2, 1) if tuple(data.shape[1:]) == expected[::-1] else data
