"""Q4_K_M by the command: what llama.cpp's quantiser makes of the file in the checkpoint's type."""

import os

import gguf
import pytest

from atp_cpp import _core as core
from atp_cpp.convert.run import convert_hf
from atp_cpp.errors import ConvertError
from support.resident import children, needs_proc
from support.sharded_llava import Shape, write_sharded_llava
from support.tiny_llava_hf import write_tiny_llava

pytestmark = pytest.mark.torch

SHAPE = Shape(n_layer=4, n_embd=256, n_ff=512, n_vocab=480)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same in the two types that checkpoints are kept in; rows of the first are k-quants'."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "bf16": write_sharded_llava(root / "sharded", SHAPE),
        "f32": write_tiny_llava(root / "tiny"),
    }


@pytest.fixture(scope="module")
def quantised(folders, tmp_path_factory):
    """{stored type: (text model, projector)}, by the command."""
    out = {stored: tmp_path_factory.mktemp(stored) / "out" for stored in folders}
    return {s: convert_hf(folders[s], out[s], outtype="q4_k_m") for s in folders}


def test_a_dry_run_says_the_sizes(folders, quantised):
    text, mmproj = quantised["bf16"]
    out = text.path.parent
    assert text.path.name == "sharded-q4_k_m.gguf"
    assert {p.name: p.stat().st_size for p in out.iterdir()} == {
        text.path.name: text.size_bytes,
        mmproj.path.name: mmproj.size_bytes,
    }
    options = {"outtype": "q4_k_m", "dry_run": True, "force": True}
    assert convert_hf(folders["bf16"], out, **options) == (text, mmproj)


@pytest.mark.parametrize(
    ("stored", "types"),
    [("bf16", {"F32", "Q4_K", "Q6_K"}), ("f32", {"F32", "Q5_0", "Q8_0"})],
)
def test_it_is_the_stored_model_quantised(folders, quantised, tmp_path, stored, types):
    """Rounded once: a checkpoint in F32 does not pass through F16."""
    path = quantised[stored][0].path
    whole, _ = convert_hf(folders[stored], tmp_path / "whole", outtype=stored)
    expected = tmp_path / "expected.gguf"
    core.quantise(str(whole.path), str(expected), "q4_k_m")
    assert path.read_bytes() == expected.read_bytes()
    assert {t.tensor_type.name for t in gguf.GGUFReader(path).tensors} == types


@needs_proc
def test_stopped_while_it_quantises(folders, tmp_path):
    """As by Ctrl-C: llama.cpp cannot be stopped, the process it runs in can."""
    seen = []

    def on_progress(what, done, total):
        seen.append(what)
        if what == "quantising to q4_k_m":
            assert len(children()) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_hf(folders["bf16"], tmp_path / "out", outtype="q4_k_m", on_progress=on_progress)
    assert seen[-1] == "quantising to q4_k_m"
    assert not (tmp_path / "out").exists()
    assert children() == []


def test_a_weight_that_is_no_number(tmp_path):
    """The tensor is named, and no file stays, though others were written before it."""
    folder = write_sharded_llava(tmp_path / "broken", SHAPE)
    shard = folder / "model-00002-of-00003.safetensors"
    with shard.open("r+b") as file:
        file.seek(-10_000, os.SEEK_END)
        file.write(b"\xc0\x7f")  # NaN in BF16
    with pytest.raises(
        ConvertError, match=r"^blk\.2\.ffn_up\.weight has weights that are no numbers"
    ):
        convert_hf(folder, tmp_path / "out", outtype="q4_k_m")
    assert not (tmp_path / "out").exists()
