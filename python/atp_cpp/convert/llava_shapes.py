"""The shapes that a LLaVA configuration gives the tensors of encoder and projector.

libmtmd does not check shapes: a tensor of another shape ends the process at the first image. Knows
shapes and configurations only: no weights, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from atp_cpp.convert.family import Encoder
from atp_cpp.errors import ConvertError

Shape = tuple[int, ...]

_TOWER = "vision_tower.vision_model."
_PROJECTOR = "multi_modal_projector."
_SIZES = (
    *("hidden_size", "intermediate_size", "num_attention_heads"),
    *("image_size", "patch_size", "num_channels"),
)


def check_shapes(
    shapes: Mapping[str, Shape], config: Mapping[str, Any], encoder: Encoder, *, class_token: bool
) -> None:
    """Compares the tensors that are there with what the configuration says.

    Args:
        shapes: name, as :func:`atp_cpp.convert.llava.canonical_name` gives it -> shape, outermost
            first. Those that are not there are not looked for.
        config: of the checkpoint, complete.
        encoder: how it is used.
        class_token: a position stands before those of the patches.

    Raises:
        ConvertError: the tensor that differs, its shape, and what the configuration makes it.
    """
    vision, width = config["vision_config"], config["text_config"]["hidden_size"]
    sizes = {name: _positive(f"vision_config.{name}", vision.get(name, 3)) for name in _SIZES}
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise ConvertError(
            f"vision_config.num_attention_heads is {sizes['num_attention_heads']}; expected a "
            f"divisor of its hidden_size, {sizes['hidden_size']}"
        )
    expected = [
        *_embeddings(sizes, int(class_token)),
        *_blocks(sizes, encoder.n_layer),
        *_projector(shapes, sizes["hidden_size"] * len(encoder.feature_layers), width),
    ]
    for name, shape in expected:
        if name in shapes and shapes[name] != shape:
            raise ConvertError(
                f"{name} is {list(shapes[name])}, config.json makes it {list(shape)}; get the "
                "checkpoint again, all files from one place"
            )


def _embeddings(sizes: Mapping[str, int], n_before: int) -> Iterator[tuple[str, Shape]]:
    hidden, patch = sizes["hidden_size"], sizes["patch_size"]
    n_rows = (sizes["image_size"] // patch) ** 2 + n_before
    yield f"{_TOWER}embeddings.class_embedding", (hidden,)
    yield (
        f"{_TOWER}embeddings.patch_embedding.weight",
        (hidden, sizes["num_channels"], patch, patch),
    )
    yield f"{_TOWER}embeddings.patch_embedding.bias", (hidden,)
    yield f"{_TOWER}embeddings.position_embedding.weight", (n_rows, hidden)
    for kind in ("weight", "bias"):
        yield f"{_TOWER}pre_layrnorm.{kind}", (hidden,)


def _blocks(sizes: Mapping[str, int], n_layer: int) -> Iterator[tuple[str, Shape]]:
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    linear = {f"self_attn.{name}_proj": (hidden, hidden) for name in ("q", "k", "v", "out")}
    linear |= {"mlp.fc1": (inner, hidden), "mlp.fc2": (hidden, inner)}
    for il in range(n_layer):
        block = f"{_TOWER}encoder.layers.{il}."
        for name, shape in linear.items():
            yield f"{block}{name}.weight", shape
            yield f"{block}{name}.bias", shape[:1]
        for norm in ("layer_norm1", "layer_norm2"):
            for kind in ("weight", "bias"):
                yield f"{block}{norm}.{kind}", (hidden,)


def _projector(
    shapes: Mapping[str, Shape], n_features: int, width: int
) -> Iterator[tuple[str, Shape]]:
    """Tensors of the projector; the width between its two layers is not checked."""
    inner = next(iter(shapes.get(f"{_PROJECTOR}linear_1.weight", ())), width)
    for layer, shape in (("linear_1", (inner, n_features)), ("linear_2", (width, inner))):
        yield f"{_PROJECTOR}{layer}.weight", shape
        yield f"{_PROJECTOR}{layer}.bias", shape[:1]
    yield "image_newline", (width,)


def _positive(what: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise ConvertError(f"{what} is {value!r}; expected a whole number of at least 1")
    return value
