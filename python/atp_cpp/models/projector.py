"""Whether the tensors of a LLaVA projector file have the shapes that the file's keys state.

libmtmd does not check the shapes, and ends the process at the first image if they do not fit.
"""

from __future__ import annotations

from atp_cpp.errors import ModelError
from atp_cpp.models.gguf_header import GgufHeader
from atp_cpp.models.pairing import projector_kind

_KEYS = {
    "hidden": "clip.vision.embedding_length",
    "heads": "clip.vision.attention.head_count",
    "image": "clip.vision.image_size",
    "patch": "clip.vision.patch_size",
}
_LAYERS = "clip.vision.feature_layer"
_CHANNELS = 3


def check_projector(header: GgufHeader, name: str) -> None:
    """Checks files with llama.cpp's "mlp" projector; other projectors have other shapes.

    Args:
        header: header of the file.
        name: name of the file, for messages.

    Raises:
        ModelError: the first thing that does not fit.
    """
    if projector_kind(header.metadata) != "mlp":
        return
    sizes: dict[str, int] = {}
    for size, key in _KEYS.items():
        value = header.metadata.get(key)
        if type(value) is not int or value < 1:
            raise ModelError(
                f"{name}: {key} is {value!r}; expected at least 1; convert the model again"
            )
        sizes[size] = value
    if sizes["hidden"] % sizes["heads"]:
        raise ModelError(
            f"{name}: {sizes['heads']} attention heads do not divide its width, {sizes['hidden']}; "
            "convert the model again"
        )
    shapes = header.shapes
    for tensor, expected in _expected(sizes, "v.class_embd" in shapes).items():
        if tensor in shapes and shapes[tensor] != expected:
            raise ModelError(
                f"{name}: {tensor} is {list(shapes[tensor])}, its keys make it {list(expected)}; "
                "convert the model again"
            )
    for tensor in shapes:
        if tensor.startswith("v.blk.") and not _fits_block(shapes, tensor, sizes["hidden"]):
            raise ModelError(
                f"{name}: {tensor} is {list(shapes[tensor])}, its encoder is {sizes['hidden']} "
                "wide; convert the model again"
            )
    _check_behind(header, sizes["hidden"], name)


def _expected(sizes: dict[str, int], class_token: bool) -> dict[str, tuple[int, ...]]:
    """Tensors before the first block -> ne, fastest dimension first."""
    hidden, patch = sizes["hidden"], sizes["patch"]
    n_rows = (sizes["image"] // patch) ** 2 + int(class_token)
    return {
        "v.class_embd": (hidden,),
        "v.patch_embd.weight": (patch, patch, _CHANNELS, hidden),
        "v.patch_embd.bias": (hidden,),
        "v.position_embd.weight": (hidden, n_rows),
    }


def _fits_block(shapes: dict[str, tuple[int, ...]], tensor: str, hidden: int) -> bool:
    """Of a block; the layers of its feed-forward part need only fit each other."""
    block, part = tensor.rsplit(".", 2)[0], ".".join(tensor.rsplit(".", 2)[1:])
    shape = shapes[tensor]
    if part.startswith("ffn_"):
        down = shapes.get(f"{block}.ffn_down.weight")
        return part != "ffn_up.weight" or (hidden in shape and down in (None, shape[::-1]))
    if part.startswith("attn_") and part.endswith("weight"):
        return shape in ((hidden, hidden), (hidden, 3 * hidden), (hidden,))
    return shape in ((hidden,), (3 * hidden,))


def _check_behind(header: GgufHeader, hidden: int, name: str) -> None:
    """The projector, and the newline between rows of tiles."""
    shapes = header.shapes
    layers = header.metadata.get(_LAYERS)
    n_features = hidden * max(len(layers) if isinstance(layers, list) else 1, 1)
    first, last = shapes.get("mm.0.weight"), shapes.get("mm.2.weight")
    if first is not None and first[0] != n_features:
        raise ModelError(
            f"{name}: mm.0.weight takes {first[0]} features, its encoder makes {n_features}; "
            "convert the model again"
        )
    for newline in ("v.image_newline", "model.image_newline"):
        if last is not None and newline in shapes and shapes[newline] != last[1:]:
            raise ModelError(
                f"{name}: {newline} is {list(shapes[newline])}, mm.2.weight makes "
                f"{list(last[1:])}; convert the model again"
            )
