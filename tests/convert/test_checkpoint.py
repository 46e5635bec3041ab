"""Reading a Hugging Face folder: what is verified before anything is converted."""

import json
import os
import sys
import zipfile

import numpy as np
import pytest

from atp_cpp import AtpError, ConvertError
from atp_cpp.convert.checkpoint import TensorFile, read_checkpoint
from support.checkpoint_files import (
    CONFIG,
    INDEX,
    LFS_POINTER,
    PARTS,
    TENSORS,
    unprivileged_folder,
    write_checkpoint,
)


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "hf")


@pytest.fixture
def sharded(tmp_path):
    return write_checkpoint(tmp_path / "hf", sharded=True)


def message_of(folder):
    """The one line that refuses it."""
    with pytest.raises(ConvertError) as refused:
        read_checkpoint(folder, "tiny")
    message = str(refused.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def test_the_error_is_one_of_ours():
    assert issubclass(ConvertError, AtpError)


def test_one_file(folder):
    read = read_checkpoint(folder, "tiny")
    assert (read.folder, read.name, read.config) == (folder, "tiny", CONFIG)
    assert read.files == ("model.safetensors",)
    assert read.tensors == {
        "a.weight": TensorFile("F32", (3, 4), 48, "model.safetensors"),
        "a.bias": TensorFile("F16", (3,), 6, "model.safetensors"),
        "b.weight": TensorFile("F32", (2, 5), 40, "model.safetensors"),
        "scale": TensorFile("F32", (), 4, "model.safetensors"),
    }
    assert read.n_bytes == sum(array.nbytes for array in TENSORS.values())


def test_shards(sharded, tmp_path):
    read = read_checkpoint(sharded, "tiny")
    assert read.files == PARTS
    assert {name: tensor.file for name, tensor in read.tensors.items()} == {
        "a.bias": PARTS[0],
        "a.weight": PARTS[0],
        "b.weight": PARTS[1],
        "scale": PARTS[1],
    }
    whole = read_checkpoint(write_checkpoint(tmp_path / "whole"), "tiny")
    assert read.n_bytes == whole.n_bytes
    (sharded / INDEX).unlink()
    assert read_checkpoint(sharded, "tiny").tensors == read.tensors


@pytest.mark.parametrize(
    ("dtype", "width"),
    [("BF16", 2), ("F64", 8), ("I64", 8), ("BOOL", 1), ("F8_E4M3", 1), ("F8_E5M2", 1), ("U8", 1)],
)
def test_types_that_numpy_may_not_have(folder, dtype, width):
    header = {"w": {"dtype": dtype, "shape": [2, 3], "data_offsets": [0, 6 * width]}}
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(6 * width)
    (folder / "model.safetensors").write_bytes(content)
    tensor = read_checkpoint(folder, "tiny").tensors["w"]
    assert tensor == TensorFile(dtype, (2, 3), 6 * width, "model.safetensors")


def test_half_bytes(folder):
    text = b'{"w":{"dtype":"F4","shape":[2,6],"data_offsets":[0,6]}}'
    content = len(text).to_bytes(8, "little") + text + bytes(6)
    (folder / "model.safetensors").write_bytes(content)
    assert read_checkpoint(folder, "tiny").tensors["w"].n_bytes == 6


# ---- the folder


def test_no_such_folder(tmp_path):
    assert "no such folder; expected a Hugging Face checkpoint" in message_of(tmp_path / "none")


def test_a_file_instead_of_a_folder(folder, tmp_path):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    assert "is a GGUF file already" in message_of(gguf)
    message = message_of(folder / "model.safetensors")
    assert "is a file" in message and "name the folder that it lies in" in message


def test_empty_folder(tmp_path):
    assert "is empty; expected a Hugging Face checkpoint" in message_of(tmp_path)


@pytest.mark.parametrize(
    ("instead", "hint"),
    [
        ("notes.txt", "expected a Hugging Face checkpoint"),
        ("adapter_config.json", "merge it into its base model"),
        ("model-q8_0.gguf", "GGUF files, which need no conversion"),
        ("main/config.json", "its folder main has one; name that"),
    ],
)
def test_no_config(tmp_path, instead, hint):
    path = tmp_path / instead
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    message = message_of(tmp_path)
    assert "has no config.json" in message and hint in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "expected a JSON object, got list"),
        (b"null", "expected a JSON object, got NoneType"),
        (LFS_POINTER, "run `git lfs pull`"),
    ],
)
def test_config_is_no_object(folder, content, reason):
    (folder / "config.json").write_bytes(content)
    assert reason in message_of(folder)


def test_config_is_a_folder(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert "config.json: cannot be read: Is a directory" in message_of(folder)


# ---- which files


def test_no_weights(folder):
    (folder / "model.safetensors").rename(folder / "diffusion_model.safetensors")
    message = message_of(folder)
    assert "has no weights; expected model*.safetensors or pytorch_model*.bin" in message
    assert "found diffusion_model.safetensors" in message
    (folder / "diffusion_model.safetensors").unlink()
    assert "found" not in message_of(folder)


@pytest.mark.parametrize("with_index", [True, False])
def test_missing_shard_is_named(sharded, with_index):
    (sharded / PARTS[1]).unlink()
    if not with_index:
        (sharded / INDEX).unlink()
    message = message_of(sharded)
    assert f"missing {PARTS[1]} (1 of 2 weight files" in message
    assert ("that model.safetensors.index.json names" in message) == with_index


def test_all_shards_missing(sharded):
    for part in PARTS:
        (sharded / part).unlink()
    assert f"missing {PARTS[0]}, {PARTS[1]} (2 of 2 weight files" in message_of(sharded)


def test_many_missing_shards_are_counted(folder):
    index = {f"w{i}": f"model-{i:05d}-of-00009.safetensors" for i in range(1, 10)}
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    message = message_of(folder)
    assert "model-00003-of-00009.safetensors … (9 of 9 weight files" in message
    assert "00004" not in message


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ("{", "not JSON"),
        ("{}", "expected weight_map"),
        ('{"weight_map": {}}', "expected weight_map"),
        ('{"weight_map": ["model.safetensors"]}', "expected weight_map"),
        ('{"weight_map": {"w": 1}}', "w is in 1; expected a file in the folder"),
        ('{"weight_map": {"w": "../up.safetensors"}}', "expected a file in the folder"),
        ('{"weight_map": {"w": ""}}', "expected a file in the folder"),
    ],
)
def test_bad_index(sharded, index, reason):
    (sharded / INDEX).write_text(index)
    assert reason in message_of(sharded)


def test_index_and_shards_disagree(sharded):
    whole = json.loads((sharded / INDEX).read_text())["weight_map"]

    def refused(weight_map):
        (sharded / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        return message_of(sharded)

    message = refused(whole | {"c.weight": PARTS[0]})
    assert f"c.weight is not in {PARTS[0]}, where the index has it" in message
    message = refused(whole | {"a.bias": PARTS[1]})
    assert f"a.bias is in {PARTS[0]}, the index has it in {PARTS[1]}" in message
    message = refused({name: file for name, file in whole.items() if name != "scale"})
    assert f"scale is in {PARTS[1]}, but not in the index" in message


def test_a_tensor_in_two_files(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.fp16.safetensors").write_bytes(content)
    message = message_of(folder)
    assert "is in model.fp16.safetensors and in model.safetensors" in message
    (folder / INDEX).write_text(
        json.dumps({"weight_map": dict.fromkeys(TENSORS, "model.safetensors")})
    )
    assert read_checkpoint(folder, "tiny").files == ("model.safetensors",)


# ---- what is in them


@pytest.mark.parametrize("part", PARTS)
def test_cut_off(sharded, part):
    """At every byte: in the length, in the header, in the data."""
    path = sharded / part
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        message = message_of(sharded)
        assert str(path) in message and "download it again" in message
        if size == 0:
            assert "is empty (0 bytes)" in message
        elif size < 8:
            assert "is no safetensors file" in message
        else:
            assert "is cut off: expected " in message and f" bytes, got {size}; " in message
        if size > 8 + int.from_bytes(content[:8], "little"):
            assert f"expected {len(content)} bytes" in message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"F16"', b'"XYZ"'),
        (b"[3,4]", b"[3,5]"),
        (b'{"', b"{{"),
        (b"a.bias", b"a.b\xffas"),
        (b"a.bias", b"scale"),
    ],
)
def test_damaged_header(folder, old, new):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    message = message_of(folder)
    assert f"{path} is damaged (" in message and "); download it again" in message


def test_more_than_the_header_says(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    assert f"{path} is damaged (" in message_of(folder)


def test_every_damaged_byte_of_a_header_is_refused_or_harmless(folder):
    """Never another exception, whatever byte is wrong."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    refused = 0
    for i in range(8 + int.from_bytes(content[:8], "little")):
        for flip in (0x01, 0x80):
            content[i] ^= flip
            path.write_bytes(content)
            content[i] ^= flip
            try:
                read_checkpoint(folder, "tiny")
            except ConvertError:
                refused += 1
    assert refused > 100


def test_not_safetensors_at_all(folder):
    (folder / "model.safetensors").write_bytes(b"<!doctype html><html>Sign in</html>")
    assert "is no safetensors file; download it again" in message_of(folder)


def test_no_tensor_in_them(folder):
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert "no tensor in model.safetensors" in message_of(folder)


@pytest.mark.skipif(os.name != "posix", reason="no such permissions here")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "."])
def test_permission_denied(name):
    with unprivileged_folder() as folder:
        write_checkpoint(folder / "hf")
        (folder / "hf" / name).chmod(0)
        message = message_of(folder / "hf")
    assert "cannot be read: Permission denied" in message
    assert name in message or name == "."


# ---- PyTorch's own files


def test_torch_files_are_taken(folder):
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("data", "123")
    read = read_checkpoint(folder, "tiny")
    assert (read.files, read.tensors) == (("pytorch_model.bin",), {})
    assert read.n_bytes == (folder / "pytorch_model.bin").stat().st_size


def test_safetensors_go_before_torch_files(folder):
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert read_checkpoint(folder, "tiny").files == ("model.safetensors",)


def test_torch_files_that_are_not_whole(folder):
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "123")
    path.write_bytes(path.read_bytes()[:-1])
    assert "pytorch_model.bin is cut off" in message_of(folder)
    path.write_bytes(b"")
    assert "is empty (0 bytes)" in message_of(folder)
    path.unlink()
    index = {"weight_map": {"w": "pytorch_model-00001-of-00002.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert "missing pytorch_model-00001-of-00002.bin" in message_of(folder)


def test_without_the_safetensors_package(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ConvertError, match="needs the safetensors package") as refused:
        read_checkpoint(folder, "tiny")
    assert 'pip install "atp_cpp[convert]"' in str(refused.value)


def test_a_large_file_costs_only_its_header(folder):
    """A hole of 3 GiB is not read: it would take seconds and as much memory."""
    n = 3 << 30
    text = f'{{"w":{{"dtype":"F32","shape":[{n // 4}],"data_offsets":[0,{n}]}}}}'.encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + n)
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_checkpoint(folder, "tiny").n_bytes == n
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    np.testing.assert_equal(read_checkpoint(folder, "tiny").tensors["w"].shape, (n // 4,))
