"""A projector file whose tensors contradict its keys: refused before an image ends the process."""

import pytest

from atp_cpp import ModelError
from atp_cpp.models.gguf_header import GgufHeader, TensorInfo
from atp_cpp.models.projector import check_projector

KEYS = {
    "clip.projector_type": "mlp",
    "clip.vision.embedding_length": 64,
    "clip.vision.feature_layer": [1, 2],
    "clip.vision.attention.head_count": 4,
    "clip.vision.image_size": 84,
    "clip.vision.patch_size": 14,
}
SHAPES = {
    "v.class_embd": (64,),
    "v.patch_embd.weight": (14, 14, 3, 64),
    "v.position_embd.weight": (64, 37),
    "v.blk.0.attn_q.weight": (64, 64),
    "v.blk.0.attn_q.bias": (64,),
    "v.blk.0.ln1.weight": (64,),
    "v.blk.0.ffn_up.weight": (64, 96),
    "v.blk.0.ffn_down.weight": (96, 64),
    "mm.0.weight": (128, 48),
    "mm.2.weight": (48, 32),
    "v.image_newline": (32,),
}


def check(keys=KEYS, shapes=SHAPES):
    tensors = {name: TensorInfo(shape, 0, 0) for name, shape in shapes.items()}
    check_projector(GgufHeader(dict(keys), tensors), "x.gguf")


def test_what_fits():
    check()
    check(shapes=SHAPES | {"v.blk.0.ffn_up.weight": (96, 64), "v.blk.0.ffn_down.weight": (64, 96)})
    check(shapes={})
    check(KEYS | {"clip.projector_type": "gemma3", "clip.vision.patch_size": 7})


@pytest.mark.parametrize("kind", ["gemma4v", "gemma3nv", "mimovl", "qwen3vl_merger"])
def test_a_kind_that_stands_in_the_vision_key(kind):
    """Files that may hold an audio encoder, too, say the kind of each."""
    others = {k: v for k, v in KEYS.items() if k != "clip.projector_type"}
    shapes = {"v.position_embd.weight": (64, 10240, 2)}  # Gemma 4's: a table for each axis
    check(others | {"clip.vision.projector_type": kind}, shapes)
    with pytest.raises(ModelError, match=r"v.position_embd.weight is \[64, 10240, 2\]"):
        check(others, shapes)  # the oldest files name no kind: they are LLaVA's
    with pytest.raises(ModelError, match=r"v.position_embd.weight is \[64, 10240, 2\]"):
        check(others | {"clip.vision.projector_type": "mlp"}, shapes)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("attention.head_count", 0, "head_count is 0; expected at least 1"),
        ("attention.head_count", 3, "3 attention heads do not divide its width, 64"),
        ("patch_size", 7, r"v.patch_embd.weight is \[14, 14, 3, 64\], its keys make it \[7, 7"),
        ("image_size", 168, r"v.position_embd.weight is \[64, 37\], its keys make it \[64, 145\]"),
        ("embedding_length", 128, r"v.class_embd is \[64\], its keys make it \[128\]"),
        ("feature_layer", [1], "mm.0.weight takes 128 features, its encoder makes 64"),
    ],
)
def test_keys_of_other_tensors(key, value, reason):
    with pytest.raises(ModelError, match=reason):
        check(KEYS | {f"clip.vision.{key}": value})


@pytest.mark.parametrize("name", [*SHAPES][:7])
def test_tensors_of_other_keys(name):
    wrong = (*SHAPES[name][:-1], SHAPES[name][-1] + 2)
    with pytest.raises(ModelError, match=f"{name} is "):
        check(shapes=SHAPES | {name: wrong})


def test_a_newline_of_another_width():
    with pytest.raises(ModelError, match=r"v.image_newline is \[10\], mm.2.weight makes \[32\]"):
        check(shapes=SHAPES | {"v.image_newline": (10,)})
