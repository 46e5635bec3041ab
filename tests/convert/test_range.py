"""Weights that the type of the file cannot hold: refused by name, never written as infinity."""

import json

import numpy as np
import pytest

from atp_cpp.convert.run import convert_hf
from atp_cpp.errors import ConvertError
from support.tiny_llava_hf import write_tiny_llava

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_llava(tmp_path_factory.mktemp("hf") / "tiny")


def put(folder, part, value):
    """Sets one weight, in F32, of the tensor whose name contains `part`."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    n = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n])
    (name,) = [key for key in header if part in key]
    at = 8 + n + header[name]["data_offsets"][0] + 40
    before = bytes(content[at : at + 4])
    content[at : at + 4] = np.float32(value).tobytes()
    path.write_bytes(content)
    return before


@pytest.mark.parametrize(
    ("part", "name", "options"),
    [
        ("layers.2.mlp.up_proj", "blk.2.ffn_up.weight has weights too large for F16", {}),
        ("layers.2.mlp.up_proj", "blk.2.ffn_up.weight .* for Q8_0", {"outtype": "q8_0"}),
        ("projector.linear_1.weight", "mm.0.weight .* for F16", {"outtype": "f32"}),
    ],
)
def test_weights_beyond_the_type(tiny, tmp_path, part, name, options):
    before = put(tiny, part, 1e7)
    try:
        with pytest.raises(ConvertError, match=rf"^{name}; choose bf16 or f32 \(--outtype"):
            convert_hf(tiny, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
        options = {"outtype": "bf16", "mmproj_outtype": "f32"}
        assert len(convert_hf(tiny, tmp_path / "out", **options)) == 2
    finally:
        put(tiny, part, np.frombuffer(before, np.float32)[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("part", "name", "outtype"),
    [
        ("layers.2.mlp.up_proj", "blk.2.ffn_up.weight", "f32"),
        ("layers.2.mlp.up_proj", "blk.2.ffn_up.weight", "bf16"),
        ("layers.2.mlp.up_proj", "blk.2.ffn_up.weight", "q8_0"),
        ("projector.linear_1.weight", "mm.0.weight", "f16"),
    ],
)
def test_weights_that_are_no_numbers(tiny, tmp_path, part, name, outtype, value):
    before = put(tiny, part, value)
    try:
        with pytest.raises(ConvertError, match=rf"^{name} has weights that are no numbers \(NaN"):
            convert_hf(tiny, tmp_path / "out", outtype=outtype)
        assert not (tmp_path / "out").exists()
    finally:
        put(tiny, part, np.frombuffer(before, np.float32)[0])
