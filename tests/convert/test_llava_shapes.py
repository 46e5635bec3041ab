"""What a LLaVA configuration makes of its tensors' shapes, and every way to contradict it."""

import json
import shutil
from copy import deepcopy

import pytest

from atp_cpp import ConvertError
from atp_cpp.convert.family import Encoder
from atp_cpp.convert.llava_shapes import check_shapes
from support.convert_many import refuse_many

TOWER = "vision_tower.vision_model."
POSITIONS = f"{TOWER}embeddings.position_embedding.weight"
PATCHES = f"{TOWER}embeddings.patch_embedding.weight"
BLOCK = f"{TOWER}encoder.layers.1."
CONFIG = {
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "image_size": 84,
        "patch_size": 14,
    },
    "text_config": {"hidden_size": 48},
}
SHAPES = {
    f"{TOWER}embeddings.class_embedding": (64,),
    PATCHES: (64, 3, 14, 14),
    POSITIONS: (37, 64),
    f"{BLOCK}self_attn.q_proj.weight": (64, 64),
    f"{BLOCK}self_attn.out_proj.bias": (64,),
    f"{BLOCK}mlp.fc1.weight": (96, 64),
    f"{BLOCK}mlp.fc1.bias": (96,),
    f"{BLOCK}mlp.fc2.weight": (64, 96),
    f"{BLOCK}layer_norm2.weight": (64,),
    "multi_modal_projector.linear_1.weight": (80, 128),
    "multi_modal_projector.linear_1.bias": (80,),
    "multi_modal_projector.linear_2.weight": (48, 80),
    "multi_modal_projector.linear_2.bias": (48,),
    "image_newline": (48,),
}
TWO_LAYERS = Encoder(3, (1, 3), "gelu", anyres=True)


def check(shapes=SHAPES, config=CONFIG, class_token=True):
    check_shapes(shapes, config, TWO_LAYERS, class_token=class_token)


def test_what_agrees_passes():
    check()
    check(SHAPES | {POSITIONS: (36, 64)}, class_token=False)


@pytest.mark.parametrize("name", SHAPES)
def test_no_shape_goes_unnoticed(name):
    wrong = (*SHAPES[name][:-1], SHAPES[name][-1] + 2)
    with pytest.raises(ConvertError) as refusal:
        check(SHAPES | {name: wrong})
    if name != "multi_modal_projector.linear_1.weight":
        assert f"config.json makes it {list(SHAPES[name])}" in str(refusal.value)
    assert str(refusal.value).startswith(f"{name} is {list(wrong)}, ")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("num_attention_heads", 0, "num_attention_heads is 0; expected a whole number of at least"),
        ("num_attention_heads", 3, "expected a divisor of its hidden_size, 64"),
        ("num_attention_heads", None, "num_attention_heads is None; expected"),
        ("patch_size", 0, "patch_size is 0; expected"),
        ("patch_size", 7, r"\[64, 3, 14, 14\], config.json makes it \[64, 3, 7, 7\]"),
        ("hidden_size", 128, r"class_embedding is \[64\], config.json makes it \[128\]"),
        ("image_size", 168, r"\[37, 64\], config.json makes it \[145, 64\]"),
        ("intermediate_size", 97, r"fc1.weight is \[96, 64\], config.json makes it \[97, 64\]"),
    ],
)
def test_a_configuration_of_other_weights(key, value, reason):
    config = deepcopy(CONFIG)
    config["vision_config"][key] = value
    with pytest.raises(ConvertError, match=reason):
        check(config=config)


@pytest.mark.torch
def test_the_converter_looks_before_it_writes(tmp_path):
    """What made the process end at the first image: in config.json, and in the weights."""
    import torch
    from safetensors.torch import load_file, save_file

    from support.hf_llava import write_llava

    write_llava("llava-next", tmp_path / "whole")
    folders = [tmp_path / name for name in ("patch", "newline")]
    for folder in folders:
        shutil.copytree(tmp_path / "whole", folder)
    config = json.loads((folders[0] / "config.json").read_text())
    config["vision_config"]["patch_size"] = 7
    (folders[0] / "config.json").write_text(json.dumps(config))
    tensors = load_file(folders[1] / "model.safetensors")
    (name,) = (name for name in tensors if name.endswith("image_newline"))
    tensors[name] = torch.zeros(10)
    save_file(tensors, folders[1] / "model.safetensors")
    messages = refuse_many(folders)
    reasons = (f"{PATCHES} is [64, 3, 14, 14]", "image_newline is [10], config.json makes it [64]")
    for message, reason in zip(messages, reasons, strict=True):
        assert message.startswith(reason)
    assert not list(tmp_path.glob("*.gguf"))
