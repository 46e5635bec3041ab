"""Would llama.cpp load the file? Asked before its weights are there."""

import gguf
import pytest

from atp_cpp import _core as core
from support.gguf_f32 import copy_keys
from support.random_sidecar import random_sidecar
from support.rig import ARCHS

LAYOUTS = ("mlp", "mlp-cls", "qwen2vl", "qwen3vl", "gemma3")


def rewritten(source, target, *, without="", hole=False):
    """The file once more, without the first tensor that has `without` in its name."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    copy_keys(reader, writer)
    left_out = next((t.name for t in reader.tensors if without and without in t.name), None)
    for t in reader.tensors:
        if t.name != left_out:
            writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if hole:
        reader = gguf.GGUFReader(target)
        start, size = min(t.data_offset for t in reader.tensors), target.stat().st_size
        with target.open("r+b") as stream:
            stream.truncate(start)
            stream.truncate(size)
    return str(target)


@pytest.mark.parametrize("arch", ARCHS)
def test_text_models(tiny_model, tmp_path, arch):
    core.check_loadable(str(tiny_model(arch)))
    core.check_loadable(rewritten(tiny_model(arch), tmp_path / "hole.gguf", hole=True))
    cut = rewritten(tiny_model(arch), tmp_path / "cut.gguf", without="blk.1.attn_output.weight")
    with pytest.raises(core.ModelError) as error:
        core.check_loadable(cut)
    assert f"llama.cpp cannot load {cut}: " in str(error.value)
    assert "'blk.1.attn_output.weight' not found" in str(error.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_projectors(tiny_mmproj, tmp_path, layout):
    core.check_loadable(str(tiny_mmproj(layout)))
    core.check_loadable(rewritten(tiny_mmproj(layout), tmp_path / "hole.gguf", hole=True))
    cut = rewritten(tiny_mmproj(layout), tmp_path / "cut.gguf", without="v.blk.1.ffn_up.weight")
    with pytest.raises(core.ModelError) as error:
        core.check_loadable(cut)
    assert f"llama.cpp cannot load {cut}: " in str(error.value)
    assert "v.blk.1.ffn_up.weight" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_model(tmp_path):
    with pytest.raises(core.ModelError, match="no such file"):
        core.check_loadable(str(tmp_path / "none.gguf"))
    sidecar = random_sidecar().write_gguf(tmp_path / "atp.gguf")
    with pytest.raises(core.ModelError, match="is an adapter, not a model"):
        core.check_loadable(str(sidecar))
    (tmp_path / "text.gguf").write_text("hello, I am no GGUF file")
    with pytest.raises(core.ModelError):
        core.check_loadable(str(tmp_path / "text.gguf"))


def test_shapes_must_fit_the_keys(tiny_model, tmp_path):
    source = tiny_model("llama")
    reader = gguf.GGUFReader(source)
    key = reader.fields["llama.feed_forward_length"]
    content = bytearray(source.read_bytes())
    at = key.offset + sum(part.nbytes for part in key.parts[:-1])
    content[at : at + 4] = (int(key.parts[-1][0]) + 32).to_bytes(4, "little")
    (tmp_path / "other.gguf").write_bytes(content)
    with pytest.raises(core.ModelError, match="has wrong shape"):
        core.check_loadable(str(tmp_path / "other.gguf"))
