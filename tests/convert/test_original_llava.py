"""LLaVA's original layout: the tensors of llava-hf's copy, or refused by the layout's name."""

import json

import gguf
import numpy as np
import pytest

from atp_cpp import ConvertError
from atp_cpp.convert import original_llava
from atp_cpp.convert.original_llava import hf_config, is_original, preprocessor
from atp_cpp.convert.run import convert_hf
from atp_cpp.images.spec import ImageSpec
from support.hf_llava import write_llava
from support.original_llava import write_original

CONFIG = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_projector_type": "mlp2x_gelu",
    "image_aspect_ratio": "pad",
    "vocab_size": 100,
}
CLIP = original_llava.known_tower("openai/clip-vit-large-patch14-336")


def tensors_of(path):
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def keys_of(path):
    fields = gguf.GGUFReader(path).fields
    return {k: f.contents() for k, f in fields.items() if not k.startswith(("GGUF.", "atp.image"))}


def assert_same(ours, theirs):
    """Both files: every tensor, bit for bit, and every key but those of the images."""
    for one, other in zip(ours, theirs, strict=True):
        mine, expected = tensors_of(one.path), tensors_of(other.path)
        assert mine.keys() == expected.keys()
        for name, tensor in mine.items():
            assert tensor.tensor_type == expected[name].tensor_type, name
            assert np.array_equal(tensor.data, expected[name].data), name
        keys, wanted = keys_of(one.path), keys_of(other.path)
        for key in ("atp.checkpoint", "general.size_label"):
            keys.pop(key, None), wanted.pop(key, None)
        assert keys == wanted


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """`copies(kind)`: a checkpoint in transformers' layout, and its files."""
    made = {}

    def make(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind) / "hf"
            write_llava(kind, folder)
            made[kind] = folder, convert_hf(folder, folder.parent / "out", model_name="m")
        return made[kind]

    return make


@pytest.mark.torch
@pytest.mark.parametrize(
    ("kind", "inside", "suffix"),
    [
        ("llava-1.5", False, ".safetensors"),
        ("llava-1.5", False, ".bin"),
        ("llava-next", True, ".safetensors"),
    ],
)
def test_the_tensors_are_those_of_the_copy(copies, tmp_path, kind, inside, suffix, monkeypatch):
    hf, theirs = copies(kind)
    tower = "inside" if inside else tmp_path / "clip"
    folder = write_original(hf, tmp_path / "original", tower=tower, suffix=suffix)
    if inside:  # the tower's configuration is known by its name, or comes from its folder
        clip = tmp_path / "clip"
        clip.mkdir()
        vision = json.loads((hf / "config.json").read_text())["vision_config"]
        (clip / "config.json").write_text(json.dumps(vision))
    ours = convert_hf(
        folder, tmp_path / "out", model_name="m", vision_tower=tmp_path / "clip" if inside else None
    )
    assert_same(ours, theirs)
    again = convert_hf(folder, tmp_path / "dry", vision_tower=tmp_path / "clip", dry_run=True)
    assert [file.size_bytes for file in again] == [file.size_bytes for file in ours]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        file.path.name for file in ours
    )


@pytest.mark.torch
def test_a_tower_that_is_nowhere(copies, tmp_path):
    hf, _ = copies("llava-1.5")
    folder = write_original(hf, tmp_path / "original", tower=tmp_path / "clip")
    (tmp_path / "clip").rename(tmp_path / "moved")
    with pytest.raises(ConvertError) as caught:
        convert_hf(folder, tmp_path / "out")
    message = str(caught.value)
    assert "the vision tower is not in this checkpoint" in message
    assert "name its folder with --vision-tower" in message
    assert convert_hf(folder, tmp_path / "out", vision_tower=tmp_path / "moved", dry_run=True)


def test_images_are_padded_as_the_original_code_does():
    made = hf_config(CONFIG, CLIP)
    spec = ImageSpec.from_hf(preprocessor(CONFIG, made), made)
    assert spec.pad_color == (122, 116, 104)  # int(255 * mean): expand2square's background
    assert spec.side == 336
    assert made["vision_feature_layer"] == -2 and made["model_type"] == "llava"


def test_tiles_are_height_first_in_transformers():
    tiled = CONFIG | {
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": [[336, 672], [1008, 336]],
    }
    made = hf_config(tiled, CLIP)
    assert made["image_grid_pinpoints"] == [[672, 336], [336, 1008]]
    assert made["architectures"] == ["LlavaNextForConditionalGeneration"]
    assert ImageSpec.from_hf(preprocessor(tiled, made), made).pinpoints


@pytest.mark.parametrize(
    "name", ["LlavaLlamaForCausalLM", "LlavaMistralForCausalLM", "ShareGPT4VLlamaForCausalLM"]
)
def test_what_is_converted(name):
    assert is_original(CONFIG | {"architectures": [name]})
    assert not is_original({"architectures": ["LlavaForConditionalGeneration"]})
    assert not is_original({})


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"architectures": ["LlavaQwenForCausalLM"]}, "llava-onevision-…"),
        ({"architectures": ["LlavaQwen2ForCausalLM"]}, "FastVLM's MobileCLIP"),
        ({"architectures": ["TinyLlavaForConditionalGeneration"]}, "TinyLLaVA's encoder"),
        ({"architectures": ["MobileLlamaForCausalLM"]}, "projector is LDP"),
        ({"architectures": ["BunnyPhiForCausalLM"]}, "of LLaVA's family"),
        ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear'; expected 'mlp2x_gelu'"),
        ({"mm_vision_select_feature": "cls_patch"}, "expected 'patch'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True; expected False"),
        ({"image_aspect_ratio": "anyres_max_9"}, "expected 'pad' or 'square' or 'anyres'"),
        ({"mm_vision_tower": None}, "mm_vision_tower is None"),
        (
            {"image_aspect_ratio": "anyres", "image_grid_pinpoints": "(1x1),...,(6x6)"},
            "image_grid_pinpoints is",
        ),
        (
            {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[336, 672]]},
            "mm_patch_merge_type is None; expected 'spatial_unpad'",
        ),
    ],
)
def test_what_is_refused_says_the_way_out(changed, says):
    with pytest.raises(ConvertError) as caught:
        is_original(CONFIG | changed)
    message = str(caught.value)
    assert says in message and "convert the copy in transformers' layout" in message


def test_another_encoder():
    with pytest.raises(ConvertError, match="is 'siglip_vision_model'"):
        hf_config(CONFIG, {"vision_config": {"model_type": "siglip_vision_model"}})
