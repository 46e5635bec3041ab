"""The generated models: same arguments, same bytes; the right keys and shapes; useful weights."""

import math
from pathlib import Path

import gguf
import numpy as np
import pytest

import make_tiny_model
from tiny_models import (
    DECODER_ARCHS,
    VISION_LAYOUTS,
    DecoderShape,
    VisionShape,
    decoder_tensors,
    vision_tensors,
    write_gguf,
)
from tiny_models.gguf_file import TensorSpec
from tiny_models.vocabulary import SPACE, build_vocabulary


class File:
    """A GGUF file read back: `keys` by name, `tensors` by name as float arrays."""

    def __init__(self, path: Path):
        reader = gguf.GGUFReader(path)
        self.keys = {name: field.contents() for name, field in reader.fields.items()}
        self.types = {t.name: t.tensor_type for t in reader.tensors}
        self.tensors = {
            t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors
        }


@pytest.mark.parametrize("arch", DECODER_ARCHS)
def test_decoder_file(tiny_model, arch):
    file = File(tiny_model(arch))
    shape = DecoderShape(arch=arch)
    assert file.keys["general.architecture"] == arch
    assert file.keys[f"{arch}.block_count"] == shape.n_layer
    assert file.keys[f"{arch}.attention.head_count"] == 4
    assert file.keys[f"{arch}.attention.head_count_kv"] == 2
    assert len(file.keys["tokenizer.ggml.tokens"]) == shape.n_vocab
    assert {spec.name: spec.shape for spec in decoder_tensors(shape)} == {
        name: values.shape for name, values in file.tensors.items()
    }
    assert all(np.isfinite(values).all() for values in file.tensors.values())
    assert file.tensors["output.weight"].shape == (512, 128)
    if arch != "phi3":
        assert file.tensors["blk.7.attn_q.weight"].shape == (128, 128)
        assert file.tensors["blk.7.attn_k.weight"].shape == (64, 128)


@pytest.mark.parametrize("layout", VISION_LAYOUTS)
def test_mmproj_file(tiny_mmproj, layout):
    file = File(tiny_mmproj(layout))
    assert file.keys["general.architecture"] == "clip"
    assert file.keys["clip.has_vision_encoder"] is True
    assert file.keys["clip.vision.block_count"] == 4
    blocks = {name.split(".")[2] for name in file.tensors if name.startswith("v.blk.")}
    assert blocks == {"0", "1", "2", "3"}, "all blocks the file speaks of are in it"
    assert {s.name: s.shape for s in vision_tensors(VisionShape(layout=layout))} == {
        name: values.shape for name, values in file.tensors.items()
    }
    last = "mm.input_projection.weight" if layout.startswith("gemma") else "mm.2.weight"
    assert 128 in file.tensors[last].shape, "image tokens are as wide as the text model"


def test_same_arguments_give_the_same_bytes(tmp_path):
    paths = [tmp_path / name for name in ("a.gguf", "b.gguf", "c.gguf")]
    for path, seed in zip(paths, (7, 7, 8), strict=True):
        make_tiny_model.write_decoder(path, "llama", seed=seed, n_layer=2)
    first, second, other = (path.read_bytes() for path in paths)
    assert first == second
    assert first != other
    assert len(first) == len(other)


def test_a_tensor_depends_on_seed_and_name_only(tiny_model):
    full, short = File(tiny_model("llama")), File(tiny_model("llama", n_layer=3))
    for name, values in short.tensors.items():
        np.testing.assert_array_equal(values, full.tensors[name])
    assert len(short.tensors) < len(full.tensors)


@pytest.mark.parametrize(("weight_type", "error"), [("f16", 1e-3), ("q8_0", 1e-2)])
def test_weight_types_hold_the_same_weights(tiny_model, weight_type, error):
    exact, rounded = File(tiny_model("llama")), File(tiny_model("llama", weight_type=weight_type))
    assert rounded.types["blk.0.attn_q.weight"].name.lower() == weight_type
    assert rounded.types["blk.0.attn_norm.weight"].name == "F32"
    for name, values in exact.tensors.items():
        difference = np.abs(rounded.tensors[name] - values).max()
        assert difference <= error * np.abs(values).max(), name


def test_gemma3_projection_is_never_quantized(tiny_mmproj):
    types = File(tiny_mmproj("gemma3", weight_type="q8_0")).types
    assert types["mm.input_projection.weight"].name == "F32", "llama.cpp would transpose blocks"
    assert types["v.blk.0.attn_q.weight"].name == "Q8_0"


@pytest.mark.parametrize("arch", ["qwen2vl", "qwen3vl"])
@pytest.mark.parametrize("head_dim", [32, 64])
def test_rope_sections_cover_all_pairs(tiny_model, arch, head_dim):
    sections = File(tiny_model(arch, head_dim=head_dim, n_head_kv=1)).keys[
        f"{arch}.rope.dimension_sections"
    ]
    assert sum(sections) == head_dim // 2
    assert sections[1] == sections[2] > 0


def test_gemma3_has_both_kinds_of_layers(tiny_model):
    keys = File(tiny_model("gemma3", window=48)).keys
    assert keys["gemma3.attention.sliding_window"] == 48
    pattern = keys["gemma3.attention.sliding_window_pattern"]
    assert pattern == [True, True, True, False] * 2


def test_feature_layer_is_written_out(tiny_mmproj):
    assert File(tiny_mmproj("mlp")).keys["clip.vision.feature_layer"] == [4]
    assert File(tiny_mmproj("mlp-cls")).keys["clip.vision.feature_layer"] == [3]


def test_position_table_has_a_row_per_patch_and_class_token(tiny_mmproj):
    for layout, image_size, rows in (("mlp", 56, 16), ("mlp", 112, 64), ("mlp-cls", 112, 65)):
        table = File(tiny_mmproj(layout, image_size=image_size)).tensors["v.position_embd.weight"]
        assert table.shape == (rows, 64)


def test_vocabulary_can_write_anything_and_reach_every_piece():
    vocabulary = build_vocabulary(2000, ("<|user|>",))
    assert len(vocabulary.tokens) == len(set(vocabulary.tokens)) == 2000
    assert {f"<0x{byte:02X}>" for byte in range(256)} <= set(vocabulary.tokens)
    known: set[str] = set()
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if kind == 1 and len(token) > 1:
            parts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
            assert any(left in known and right in known for left, right in parts), token
        known.add(token)
    assert SPACE in known
    ranks = [s for s, kind in zip(vocabulary.scores, vocabulary.types, strict=True) if kind == 1]
    assert ranks == sorted(ranks, reverse=True)


def test_first_layer_attention_is_peaked_and_logits_vary(tiny_model):
    tensors = File(tiny_model("llama")).tensors
    hidden = tensors["token_embd.weight"]
    normed = hidden / np.sqrt((hidden**2).mean(axis=1, keepdims=True))
    scaled = normed * tensors["blk.0.attn_norm.weight"]
    q = scaled @ tensors["blk.0.attn_q.weight"][:32].T
    k = scaled @ tensors["blk.0.attn_k.weight"][:32].T
    scores = q @ k.T / math.sqrt(32)
    assert 1.8 < scores.std() < 3.5
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    assert 0.02 < weights.max(axis=1).mean() < 0.6
    text = np.array(File(tiny_model("llama")).keys["tokenizer.ggml.token_type"]) == 1
    logits = normed @ tensors["output.weight"].T
    assert 1.0 < logits[:, text].std() < 4.0


@pytest.mark.parametrize("arch", DECODER_ARCHS)
def test_no_block_writes_to_the_constant_channel(tiny_model, arch):
    tensors = File(tiny_model(arch)).tensors
    assert np.ptp(tensors["token_embd.weight"][:, 0]) == 0.0
    assert tensors["token_embd.weight"][0, 0] > 0.0
    last = {"gemma3": "post_ffw_norm", "qwen2moe": "ffn_down_exps"}.get(arch, "ffn_down")
    values = tensors[f"blk.3.{last}.weight"]
    row = values[:, 0] if values.ndim == 3 else values[0]
    assert not np.any(row)
    assert np.any(values)
    assert tensors["output.weight"][1, 0] < tensors["output.weight"][400, 0] - 10, "<s> is rare"


@pytest.mark.parametrize("weight_type", ["q8_0", "q4_0"])
def test_random_blocks_have_the_asked_spread(tmp_path, weight_type):
    spec = TensorSpec(name="w", shape=(256, 512), std=0.05)
    path = tmp_path / "blocks.gguf"
    write_gguf(
        path,
        arch="llama",
        metadata={},
        tensors=[spec],
        weight_type=weight_type,
        seed=1,
        fast_blocks=True,
    )
    values = File(path).tensors["w"]
    assert values.shape == (256, 512)
    assert values.std() == pytest.approx(0.05, rel=0.02)
    assert values.max() == -values.min(), "as many steps up as down"
    assert abs(values.mean()) < 0.05 * 4 / math.sqrt(values.size)


def test_random_blocks_refuse_an_edit(tmp_path):
    spec = TensorSpec(name="w", shape=(2, 32), std=1.0, edit=lambda values: None)
    path = tmp_path / "blocks.gguf"
    with pytest.raises(ValueError, match="w: an edited tensor"):
        write_gguf(
            path,
            arch="llama",
            metadata={},
            tensors=[spec],
            weight_type="q8_0",
            seed=1,
            fast_blocks=True,
        )
    assert not path.exists()


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"arch": "gpt5"}, "not one of"),
        ({"arch": "llama", "n_embd": 100}, "multiple of head_dim"),
        ({"arch": "llama", "n_head_kv": 3}, "cannot share"),
        ({"arch": "llama", "n_vocab": 300}, "too small"),
    ],
)
def test_impossible_decoders_are_refused(sizes, reason):
    with pytest.raises(ValueError, match=reason):
        DecoderShape(**sizes)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"layout": "sam"}, "not one of"),
        ({"layout": "mlp", "n_ff": 64}, "must not be as wide"),
        ({"layout": "mlp", "image_size": 100}, "whole number of patches"),
        ({"layout": "qwen2vl", "image_size": 70}, "whole number of patches"),
        ({"layout": "qwen3vl", "n_deepstack": 4}, "more blocks"),
    ],
)
def test_impossible_towers_are_refused(sizes, reason):
    with pytest.raises(ValueError, match=reason):
        VisionShape(**sizes)


def test_command_line(tmp_path, capsys):
    out = tmp_path / "m.gguf"
    assert make_tiny_model.main(["llama", "--out", str(out), "--layers", "2", "--type", "f16"]) == 0
    assert File(out).keys["llama.block_count"] == 2
    with pytest.raises(SystemExit) as stop:
        make_tiny_model.main(["mmproj-mlp", "--out", str(out), "--window", "8"])
    assert stop.value.code == 2
    assert "window" in capsys.readouterr().err
