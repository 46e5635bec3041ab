"""The type of PyTorch's own weight files, which is told from config.json alone."""

from pathlib import Path

import pytest

from atp_cpp.convert.checkpoint import Checkpoint, TensorFile
from atp_cpp.convert.run import _target, stored_type


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "bfloat16"}, "bf16"),
        ({"torch_dtype": "bfloat16"}, "bf16"),
        ({"torch_dtype": None, "text_config": {"torch_dtype": "bfloat16"}}, "bf16"),
        ({"torch_dtype": "float32"}, "f32"),
        ({"torch_dtype": "float16"}, "f16"),
        ({"torch_dtype": ["x"], "text_config": None}, "f16"),
        ({}, "f16"),
    ],
)
def test_torch_files(config, expected):
    """What they are quantised from holds whatever they have."""
    checkpoint = Checkpoint(Path("in"), "tiny", config, {}, ("pytorch_model.bin",))
    assert stored_type(checkpoint) == expected
    target = _target(checkpoint, Path("out"), "q4_k_m", "auto", False)
    job = target.job(checkpoint, {path: path for path in target.paths})
    assert job.stored_type == "f32"


def test_safetensors_say_it_themselves():
    tensors = {"a": TensorFile("BF16", (2, 2), 8, "model.safetensors")}
    checkpoint = Checkpoint(Path("in"), "tiny", {"dtype": "float16"}, tensors)
    assert stored_type(checkpoint) == "bf16"
    target = _target(checkpoint, Path("out"), "q4_k_m", "auto", False)
    assert target.job(checkpoint, {path: path for path in target.paths}).stored_type == "bf16"
