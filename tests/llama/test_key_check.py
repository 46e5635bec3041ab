"""Keys that llama.cpp takes for granted: refused before reading them ends the process."""

import struct

import gguf
import pytest

from atp_cpp import Captioner
from atp_cpp import _core as core
from fuzzing.gguf_bytes import Key, join, parse

U32, I32, F32, STRING = 4, 5, 6, 8


def u32(value):
    return U32, struct.pack("<I", value)


def f32(value):
    return F32, struct.pack("<f", value)


def text(value):
    return STRING, struct.pack("<Q", len(value)) + value


def changed(source, target, **keys):
    """The file with other values; a key that is not there is added. `__` stands for a dot."""
    pieces = parse(source.read_bytes())
    for name, (kind, value) in keys.items():
        name = name.replace("__", ".").encode()
        pieces.keys = [key for key in pieces.keys if key.name != name]
        pieces.keys.append(Key(name, kind, value))
    target.write_bytes(join(pieces))
    return target


def refused(path, reason):
    with pytest.raises(core.ModelError, match=reason) as error:
        core.check_gguf(str(path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("layout", ["mlp", "qwen2vl", "gemma3", "pixtral"])
@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("clip__projector_type", "str"),
        ("clip__has_vision_encoder", "bool"),
        ("clip__vision__attention__layer_norm_epsilon", "f32"),
        ("clip__vision__image_mean", "arr"),
        ("clip__vision__block_count", "u32"),
        ("clip__vision__patch_size", "u32"),
        ("clip__vision__attention__head_count", "u32"),
        ("general__name", "str"),
    ],
)
def test_a_key_of_a_projector_of_another_type(tiny_mmproj, tmp_path, layout, key, expected):
    path = changed(tiny_mmproj(layout), tmp_path / "x.gguf", **{key: (I32, bytes(4))})
    name = key.replace("__", ".")
    refused(path, f"{name} is of type i32; expected {expected}")


@pytest.mark.parametrize("eps", [-1.0, float("nan"), float("inf")])
def test_an_epsilon_that_is_none(tiny_model, tiny_mmproj, tmp_path, eps):
    key = "llama__attention__layer_norm_rms_epsilon"
    refused(changed(tiny_model("llama"), tmp_path / "x.gguf", **{key: f32(eps)}), "expected 0 or")
    key = "clip__vision__attention__layer_norm_epsilon"
    refused(changed(tiny_mmproj("mlp"), tmp_path / "y.gguf", **{key: f32(eps)}), "expected 0 or")


@pytest.mark.parametrize("arch", ["qwen2", "qwen2vl", "qwen2moe"])
@pytest.mark.parametrize("n_head", [0, 3, 7, 64, 2**32 - 1])
def test_heads_that_do_not_fit(tiny_model, tmp_path, arch, n_head):
    key = f"{arch}__attention__head_count"
    path = changed(tiny_model(arch), tmp_path / "x.gguf", **{key: u32(n_head)})
    refused(path, f"{n_head} attention heads (do not divide its width|of 32 elements are not what)")


@pytest.mark.parametrize("arch", ["llama", "gemma3", "phi3"])
def test_a_rotation_that_is_odd_or_too_wide(tiny_model, tmp_path, arch):
    key = f"{arch}__rope__dimension_count"
    for n_rot in (3, 4096):
        path = changed(tiny_model(arch), tmp_path / "x.gguf", **{key: u32(n_rot)})
        refused(path, f"rope.dimension_count is {n_rot}")


def test_a_rotation_of_nothing(tiny_model, tmp_path):
    """A case with it ran for over 10 seconds."""
    none = changed(tiny_model("gemma3"), tmp_path / "x.gguf", gemma3__rope__dimension_count=u32(0))
    refused(none, "rope.dimension_count is 0; expected the elements of a head")


def test_keys_and_values_of_two_widths(tiny_model, tmp_path):
    path = changed(tiny_model("llama"), tmp_path / "x.gguf", llama__attention__value_length=u32(7))
    refused(path, "a head's key has [0-9]+ elements, its value 7")


def test_more_experts_than_llama_cpp_has(tiny_model, tmp_path):
    path = changed(tiny_model("qwen2moe"), tmp_path / "x.gguf", qwen2moe__expert_count=u32(9999))
    refused(path, "expert_count is 9999; expected at most")


@pytest.mark.parametrize("name", [b"a" * 3000, b"\xff\xfe", b"a\nb", b""])
def test_an_architecture_that_is_no_name(tiny_model, tmp_path, name):
    path = changed(tiny_model("llama"), tmp_path / "x.gguf", general__architecture=text(name))
    refused(path, "names the architecture ")


def test_what_llama_cpp_quotes_of_a_file_is_cut(tiny_model, tmp_path):
    kind = text(b"a" * 3000)
    path = changed(tiny_model("llama"), tmp_path / "x.gguf", tokenizer__ggml__model=kind)
    with pytest.raises(core.ModelError, match=r"unknown tokenizer: 'a.* … ") as error:
        core.check_loadable(str(path))
    assert len(str(error.value)) < 200 + 320 + len(str(path))


def test_a_chat_template_that_is_no_text(tiny_model, tiny_mmproj, tmp_path):
    path = changed(
        tiny_model("qwen2"), tmp_path / "x.gguf", tokenizer__chat_template=text(b"\xff\xfe")
    )
    with pytest.raises(core.ModelError, match=r"chat template is no UTF-8 text"):
        Captioner(path, mmproj=tiny_mmproj("mlp"), n_ctx=64, n_threads=1, self_test=False)


def test_pieces_are_the_file(tiny_model, tiny_mmproj):
    """The reader behind these tests loses nothing."""
    for path in (tiny_model("gemma3"), tiny_mmproj("qwen3vl")):
        pieces = parse(path.read_bytes())
        assert join(pieces) == path.read_bytes()
        assert [t.name.decode() for t in pieces.tensors] == [
            t.name for t in gguf.GGUFReader(path).tensors
        ]
