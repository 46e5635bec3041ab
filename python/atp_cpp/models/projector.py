"""Whether the tensors of a LLaVA projector file have the shapes that the file's keys state.

libmtmd does not check the shapes, and ends the process at the first image if they do not fit.
"""

from __future__ import annotations

from atp_cpp.errors import ModelError
from atp_cpp.models.gguf_header import GgufHeader
from atp_cpp.models.pairing import projector_kind
from atp_cpp.options.texts import brief

_KEYS = {
    "hidden": "clip.vision.embedding_length",
    "heads": "clip.vision.attention.head_count",
    "image": "clip.vision.image_size",
    "patch": "clip.vision.patch_size",
}
# whose encoders are plain ViTs: all blocks are alike
_ALIKE = {
    *("gemma3", "idefics3", "internvl", "lfm2", "pixtral"),
    *("qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger"),
}
_MATRICES = {
    *("attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_qkv.weight", "attn_out.weight"),
    *("ffn_up.weight", "ffn_down.weight", "ffn_gate.weight"),
}
_VECTORS = {f"v.{part}_ln.{end}" for part in ("pre", "post") for end in ("weight", "bias")}
_WHOLE = range(24, 28)  # ggml's ids of I8 to I64
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
    kind = projector_kind(header.metadata)
    if kind == "mlp" or kind in _ALIKE:
        _check_forms(header, name)
    if kind in _ALIKE:
        _check_alike(header, name)
    if kind != "mlp":
        return
    sizes: dict[str, int] = {}
    for size, key in _KEYS.items():
        value = header.metadata.get(key)
        if type(value) is not int or value < 1:
            raise ModelError(
                f"{name}: {key} is {brief(value)}; expected at least 1; convert the model again"
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
    for tensor in _VECTORS & shapes.keys():
        if shapes[tensor] != (sizes["hidden"],):
            raise ModelError(
                f"{name}: {tensor} is {list(shapes[tensor])}, its encoder is {sizes['hidden']} "
                "wide; convert the model again"
            )
    _check_behind(header, sizes["hidden"], name)


def _check_forms(header: GgufHeader, name: str) -> None:
    """Of a plain ViT: its tensors hold fractions, matrices are matrices, vectors are vectors."""
    has_blocks = any(tensor.startswith("v.blk.") for tensor in header.tensors)
    if has_blocks and "v.patch_embd.weight" not in header.tensors:
        raise ModelError(
            f"{name}: it has no v.patch_embd.weight, which reads the image; convert the model again"
        )
    if has_blocks:
        _check_complete(header, name)
    for tensor, info in header.tensors.items():
        if info.type in _WHOLE:
            raise ModelError(
                f"{name}: {brief(tensor)} holds whole numbers; expected weights; "
                "convert the model again"
            )
        part = ".".join(tensor.split(".")[-2:])
        n_dims = len(info.shape)
        if part in _MATRICES or tensor in ("mm.0.weight", "mm.2.weight"):
            fits = n_dims == 2
        elif tensor.startswith("v.blk.") or tensor in _VECTORS:
            fits = n_dims == 1
        else:
            continue
        if not fits:
            raise ModelError(
                f"{name}: {brief(tensor)} has {n_dims} dimensions, {list(info.shape)}; "
                "convert the model again"
            )


def _check_complete(header: GgufHeader, name: str) -> None:
    """Of a plain ViT: each block has the tensors of the others, an MLP behind it its own."""
    blocks: dict[str, set[str]] = {}
    for tensor in header.tensors:
        if tensor.startswith("v.blk.") and tensor.count(".") >= 3:
            block, part = tensor.split(".", 3)[2:]
            blocks.setdefault(block, set()).add(part)
    every = set().union(*blocks.values())
    missing = [f"v.blk.{b}.{p}" for b, parts in blocks.items() for p in sorted(every - parts)]
    if projector_kind(header.metadata) == "mlp":
        layers = ("mm.0",) if "mm.3.weight" in header.tensors else ("mm.0", "mm.2")
        needed = [f"{layer}.{end}" for layer in layers for end in ("weight", "bias")]
        missing += [tensor for tensor in needed if tensor not in header.tensors]
    if missing:
        raise ModelError(
            f"{name}: it has no {brief(missing[0])}, which its other tensors go with; "
            "convert the model again"
        )


def _check_alike(header: GgufHeader, name: str) -> None:
    """Of an encoder whose shapes are not listed here: its blocks are those of the first one."""
    hidden, shapes = header.metadata.get(_KEYS["hidden"]), header.shapes
    heads = header.metadata.get(_KEYS["heads"])
    if type(hidden) is not int or type(heads) is not int or heads < 1 or hidden % heads:
        raise ModelError(
            f"{name}: {brief(heads)} attention heads do not divide its width, {brief(hidden)}; "
            "convert the model again"
        )
    patch, embd = header.metadata.get(_KEYS["patch"]), shapes.get("v.patch_embd.weight", ())
    if len(embd) == 4 and embd[:2] != (patch, patch):
        raise ModelError(
            f"{name}: v.patch_embd.weight is {list(embd)}, its patches have {brief(patch)} pixels "
            "a side; convert the model again"
        )
    for tensor, shape in shapes.items():
        if not tensor.startswith("v.blk."):
            continue
        part = tensor.split(".", 3)[-1]
        first = shapes.get(f"v.blk.0.{part}", shape)
        if shape != first:
            raise ModelError(
                f"{name}: {tensor} is {list(shape)}, in block 0 it is {list(first)}; "
                "convert the model again"
            )
        if part in ("ln1.weight", "ln2.weight") and shape != (hidden,):
            raise ModelError(
                f"{name}: {tensor} is {list(shape)}, its encoder is {hidden} wide; "
                "convert the model again"
            )


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
