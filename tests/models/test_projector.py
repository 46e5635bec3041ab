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
    "mm.0.bias": (48,),
    "mm.2.bias": (32,),
}


ALIKE = {
    "v.patch_embd.weight": (14, 14, 3, 64),
    **{
        f"v.blk.{block}.{part}": shape
        for block in (0, 1)
        for part, shape in {
            "attn_q.weight": (64, 64),
            "attn_q.bias": (64,),
            "ln1.weight": (64,),
            "ffn_up.weight": (64, 96),
        }.items()
    },
}


def check(keys=KEYS, shapes=SHAPES):
    tensors = {name: TensorInfo(shape, 0, 0) for name, shape in shapes.items()}
    check_projector(GgufHeader(dict(keys), tensors), "x.gguf")


def test_what_fits():
    check()
    check(shapes=SHAPES | {"v.blk.0.ffn_up.weight": (96, 64), "v.blk.0.ffn_down.weight": (64, 96)})
    check(shapes={})
    check(KEYS | {"clip.projector_type": "ldp", "clip.vision.patch_size": 7})


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


VIT = KEYS | {"clip.projector_type": "gemma3"}


@pytest.mark.parametrize("kind", ["gemma3", "pixtral", "qwen2vl_merger", "internvl"])
def test_blocks_of_a_plain_vit_are_alike(kind):
    keys = KEYS | {"clip.projector_type": kind}
    check(keys, ALIKE)
    with pytest.raises(ModelError, match=r"v.blk.1.ffn_up.weight is \[64, 95\], in block 0 it is"):
        check(keys, ALIKE | {"v.blk.1.ffn_up.weight": (64, 95)})
    with pytest.raises(ModelError, match="5 attention heads do not divide its width, 64"):
        check(keys | {"clip.vision.attention.head_count": 5}, ALIKE)
    wrong = {f"v.blk.{block}.ln1.weight": (32,) for block in (0, 1)}
    with pytest.raises(ModelError, match=r"ln1.weight is \[32\], its encoder is 64 wide"):
        check(keys, ALIKE | wrong)


@pytest.mark.parametrize("keys", [KEYS, VIT], ids=["mlp", "gemma3"])
@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        ("v.blk.0.attn_q.weight", (64,)),
        ("v.blk.0.attn_q.bias", (64, 64)),
        ("v.blk.0.ln1.weight", (64, 64)),
        ("mm.0.weight", ()),
        ("mm.2.weight", (48,)),
        ("v.pre_ln.weight", (64, 64)),
    ],
)
def test_a_vector_in_place_of_a_matrix(keys, tensor, shape):
    with pytest.raises(ModelError, match=f"{tensor}' has {len(shape)} dimensions"):
        check(keys, SHAPES | {tensor: shape})


@pytest.mark.parametrize("keys", [KEYS, VIT], ids=["mlp", "gemma3"])
@pytest.mark.parametrize("kind", [24, 25, 26, 27])
def test_whole_numbers_are_no_weights(keys, kind):
    tensors = {name: TensorInfo(shape, 0, 0) for name, shape in SHAPES.items()}
    check_projector(GgufHeader(dict(KEYS), tensors), "x.gguf")
    tensors["v.blk.0.attn_q.weight"] = TensorInfo((64, 64), kind, 0)
    with pytest.raises(ModelError, match=r"attn_q.weight' holds whole numbers; expected weights"):
        check_projector(GgufHeader(dict(keys), tensors), "x.gguf")


def test_an_encoder_that_reads_no_image():
    without = {name: shape for name, shape in SHAPES.items() if name != "v.patch_embd.weight"}
    with pytest.raises(ModelError, match=r"it has no v.patch_embd.weight, which reads the image"):
        check(shapes=without)


def test_a_norm_of_another_width():
    with pytest.raises(ModelError, match=r"v.pre_ln.weight is \[32\], its encoder is 64 wide"):
        check(shapes=SHAPES | {"v.pre_ln.weight": (32,)})


@pytest.mark.parametrize("tensor", ["mm.0.weight", "mm.0.bias", "mm.2.weight", "mm.2.bias"])
def test_a_projector_that_lacks_a_tensor(tensor):
    without = {name: shape for name, shape in SHAPES.items() if name != tensor}
    with pytest.raises(ModelError, match=f"it has no '{tensor}'"):
        check(shapes=without)


@pytest.mark.parametrize("tensor", [name for name in ALIKE if "blk" in name])
def test_a_block_that_lacks_a_tensor(tensor):
    without = {name: shape for name, shape in ALIKE.items() if name != tensor}
    with pytest.raises(ModelError, match=f"it has no '{tensor}'"):
        check(VIT, without)


def test_patches_of_another_size():
    with pytest.raises(ModelError, match="its patches have 7 pixels a side"):
        check(VIT | {"clip.vision.patch_size": 7}, ALIKE)
