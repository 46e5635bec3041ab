"""Checkpoints whose configuration says too little, or of another program: mended, or refused."""

import json

import numpy as np
import pytest

from atp_cpp import ConvertError
from atp_cpp.convert.checkpoint import read_checkpoint
from atp_cpp.convert.failures import failure
from atp_cpp.convert.next_layers import has_next_layers, names_next_layers
from atp_cpp.convert.run import convert_hf
from support.checkpoint_files import CONFIG, TENSORS, write_checkpoint
from support.hf_models import write_tiny

# ---- what is said of an error


def raised(code):
    try:
        exec(code, {})
    except Exception as error:
        return failure(error)
    raise AssertionError("it raised nothing")


def test_no_message_is_an_exceptions_name():
    assert raised("assert 1 == 2").startswith("a check without a message failed (<string>:1: ")
    assert raised("{}['head_dim']") == (
        "it looks for 'head_dim' in config.json or the weights, which is not there"
    )
    assert raised("raise ValueError('two\\nlines')") == "two lines"
    assert raised("raise MemoryError") == "there is not enough memory"
    assert failure(AssertionError()) == "it gives no reason; --verbose shows more"


def test_pytorchs_advice_to_run_a_file_is_not_passed_on():
    advice = "class UnpicklingError(Exception): pass\nraise UnpicklingError('weights_only=False')"
    assert "weights_only" not in raised(advice)
    assert "never run here; save the model as safetensors" in raised(advice)


# ---- layers that predict further tokens


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["model.layers.0.mlp.weight", "model.layers.3.mlp.weight"], False),
        (["model.language_model.layers.4.mlp.weight"], True),  # behind the last
        (["mtp.layers.0.mlp.weight"], True),
        (["model.mtp.fc.weight"], True),
        (["model.visual.layers.9.mlp.weight", "vision_tower.encoder.layers.9.x"], False),
    ],
)
def test_layers_for_further_tokens(names, found):
    assert names_next_layers(names, {"num_hidden_layers": 4}) == found
    assert names_next_layers(names, {"text_config": {"num_hidden_layers": 4}}) == found


def test_where_their_names_are(tmp_path):
    config = {"num_hidden_layers": 1}
    assert has_next_layers(tmp_path, config)  # not known
    folder = write_checkpoint(tmp_path / "a", sharded=True)
    assert not has_next_layers(folder, config)
    more = TENSORS | {"mtp.fc.weight": TENSORS["a.weight"]}
    assert has_next_layers(write_checkpoint(tmp_path / "b", tensors=more), config)


# ---- other programs' weights


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"quantization": {"bits": 4, "group_size": 64}}, "are MLX's, quantised to 4 bits"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised by bitsandbytes"),
    ],
)
def test_quantised_by_another_program(tmp_path, config, says):
    folder = write_checkpoint(tmp_path / "hf", config=CONFIG | config)
    with pytest.raises(ConvertError, match=says) as caught:
        read_checkpoint(folder, "tiny")
    assert "convert the checkpoint that they were made from" in str(caught.value)


def test_mlx_without_quantisation(tmp_path):
    from safetensors.numpy import save_file

    folder = write_checkpoint(tmp_path / "hf")
    save_file(TENSORS, folder / "model.safetensors", metadata={"format": "mlx"})
    with pytest.raises(ConvertError, match="are MLX's, which lays tensors out in other orders"):
        read_checkpoint(folder, "tiny")
    save_file(TENSORS, folder / "model.safetensors", metadata={"format": "pt"})
    read_checkpoint(folder, "tiny")


# ---- classes


@pytest.mark.torch
@pytest.mark.parametrize("named", [None, [], ["Qwen2VLForCausalThings"], ["SmolVLMModel"]])
def test_a_class_that_is_not_named(tmp_path, named, caplog):
    folder = tmp_path / "hf"
    write_tiny("smolvlm", folder)
    whole = [f.path.read_bytes() for f in convert_hf(folder, tmp_path / "a", model_name="m")]
    config = json.loads((folder / "config.json").read_text())
    config.pop("architectures")
    if named is not None:
        config["architectures"] = named
    (folder / "config.json").write_text(json.dumps(config))
    caplog.clear()
    if named and not named[0].endswith("Model"):  # a class is named: it is not ours to say another
        with pytest.raises(ConvertError, match="Qwen2VLForCausalThings is neither"):
            convert_hf(folder, tmp_path / "b", model_name="m")
        return
    made = [f.path.read_bytes() for f in convert_hf(folder, tmp_path / "b", model_name="m")]
    assert made == whole
    said = "the base class SmolVLMModel" if named else "no architecture"
    assert (
        f"config.json names {said}; taken for SmolVLMForConditionalGeneration by its model_type, "
        "'smolvlm'" in caplog.text
    )


@pytest.mark.torch
def test_experts_that_lie_the_other_way_round():
    import torch

    from atp_cpp.convert.passthrough import published_experts

    width, inner = 6, 4
    for part, shape in (("gate_up_proj", (3, width, 2 * inner)), ("down_proj", (3, inner, width))):
        name = f"model.language_model.layers.0.mlp.experts.{part}"
        published = torch.from_numpy(np.random.default_rng(0).normal(size=shape))
        saved = published.permute(0, 2, 1).contiguous()
        assert torch.equal(published_experts(saved, name, width, inner), published)
        assert published_experts(published, name, width, inner) is published
        assert published_experts(published, "other", width, inner) is published
    with pytest.raises(ConvertError, match="cannot be told which way round"):
        published_experts(torch.zeros(3, 8, 8), "x.experts.gate_up_proj", 8, 4)
