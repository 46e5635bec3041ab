"""Checkpoints as transformers 5 saves them, where llama.cpp's converter expects others."""

import json

import gguf
import numpy as np
import pytest

from atp_cpp.convert.run import convert_hf
from atp_cpp.inspect.file import inspect_file
from support.hf_models import IMAGES, ROPE, TEXT
from support.tiny_tokenizers import write_tokenizer

pytestmark = pytest.mark.torch

VISION = {"hidden_size": 64, "intermediate_size": 96, "patch_size": 16}
QWEN_VISION = VISION | {
    "depth": 2,
    "num_heads": 4,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
}


def _text(n_vocab, **more):
    return TEXT | {"vocab_size": n_vocab, "head_dim": 16, "num_hidden_layers": 4} | more


def _lfm2(n_vocab, image):
    from transformers import Lfm2VlConfig

    vision = VISION | {"num_hidden_layers": 4, "num_attention_heads": 4, "num_patches": 64}
    text = {k: v for k, v in _text(n_vocab).items() if k != "head_dim"}
    kinds = ["conv", "full_attention", "conv", "conv"]
    text |= {"model_type": "lfm2", "layer_types": kinds, "block_auto_adjust_ff_dim": False}
    vision |= {"model_type": "siglip2_vision_model", "vision_use_head": False}
    return Lfm2VlConfig(vision_config=vision, text_config=text, image_token_id=image)


def _moe(n_vocab, image):
    from transformers import Qwen3VLMoeConfig

    rope = ROPE | {"mrope_section": [4, 2, 2], "mrope_interleaved": True}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    return Qwen3VLMoeConfig(
        text_config=_text(n_vocab, rope_parameters=rope, **experts),
        vision_config=QWEN_VISION | {"deepstack_visual_indexes": [0]},
        image_token_id=image,
    )


def _qwen3_5(n_vocab, image):
    from transformers import Qwen3_5Config

    rope = ROPE | {"mrope_section": [1, 1, 0], "mrope_interleaved": True}
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    widths = {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
    return Qwen3_5Config(
        text_config=_text(
            n_vocab, rope_parameters=rope | {"partial_rotary_factor": 0.25}, **heads, **widths
        ),
        vision_config=QWEN_VISION,
        image_token_id=image,
    )


def converted(make, tmp_path):
    """The model, and its files' readers: text, projector."""
    import torch
    from transformers import AutoModelForImageTextToText

    folder = tmp_path / "hf"
    tokenizer = write_tokenizer(folder, "qwen2_vl")
    torch.manual_seed(0)
    config = make(tokenizer.n_tokens + 8, tokenizer.ids["<|image_pad|>"])
    model = AutoModelForImageTextToText.from_config(config).eval()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES["qwen3_vl"]))
    files = convert_hf(folder, tmp_path / "out", outtype="f32", mmproj_outtype="f32")
    assert inspect_file(files[0].path, n_threads=1).n_embd == 64  # llama.cpp loads it
    assert inspect_file(files[1].path, model=files[0].path).fits
    return model, [gguf.GGUFReader(file.path) for file in files]


def tensor(reader, name):
    (found,) = [t for t in reader.tensors if t.name == name]
    return found.data


def test_qwen3_5_without_layers_for_further_tokens(tmp_path):
    model, (text, _) = converted(_qwen3_5, tmp_path)
    assert "qwen35.nextn_predict_layers" not in text.fields
    assert text.fields["qwen35.block_count"].contents() == 4
    embeddings = model.get_input_embeddings().weight.detach().numpy()
    assert np.array_equal(tensor(text, "token_embd.weight"), embeddings)


def test_qwen3_vl_moe_has_its_experts_the_right_way_round(tmp_path):
    model, (text, _) = converted(_moe, tmp_path)
    layers = model.model.language_model.layers
    for number, layer in enumerate(layers):
        experts = {n: p.detach().numpy() for n, p in layer.mlp.experts.named_parameters()}
        gate, up = np.split(
            experts["gate_up_proj"], 2, axis=1
        )  # [expert, out, in] in transformers 5
        for name, expected in (("gate", gate), ("up", up), ("down", experts["down_proj"])):
            assert np.array_equal(tensor(text, f"blk.{number}.ffn_{name}_exps.weight"), expected)


def test_lfm2_vl_has_its_encoder(tmp_path):
    model, (_, vision) = converted(_lfm2, tmp_path)
    tower = model.model.vision_tower
    weights = {n.removeprefix("vision_model."): p for n, p in tower.named_parameters()}
    for name, ours in (
        ("embeddings.position_embedding.weight", "v.position_embd.weight"),
        ("encoder.layers.1.mlp.fc1.weight", "v.blk.1.ffn_up.weight"),
        ("post_layernorm.weight", "v.post_ln.weight"),
    ):
        assert np.array_equal(tensor(vision, ours), weights[name].detach().numpy()), name
