"""Pointers of Git LFS and links to nowhere in a checkpoint's folder."""

import pytest

from atp_cpp import ConvertError
from atp_cpp.convert.checkpoint import read_checkpoint
from support.checkpoint_files import INDEX, LFS_POINTER, write_checkpoint


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "hf")


@pytest.fixture
def sharded(tmp_path):
    return write_checkpoint(tmp_path / "hf", sharded=True)


def message_of(folder):
    with pytest.raises(ConvertError) as refused:
        read_checkpoint(folder, "tiny")
    return str(refused.value)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer.model"])
def test_lfs_pointer(folder, name):
    (folder / name).write_bytes(LFS_POINTER)
    message = message_of(folder)
    assert f"{folder / name} is a Git LFS pointer" in message
    assert f"run `git lfs pull` in {folder}" in message


def test_a_pointer_in_the_indexs_place(sharded):
    (sharded / INDEX).write_bytes(LFS_POINTER)
    assert f"{sharded / INDEX} is a Git LFS pointer" in message_of(sharded)


@pytest.mark.parametrize(
    "name", ["flax_model.msgpack", "pytorch_model.bin", ".#config.json", "tf_model.h5", "x.png"]
)
@pytest.mark.parametrize("gone", [True, False])
def test_files_that_are_never_read_may_be_anything(folder, name, gone):
    if gone:
        (folder / name).symlink_to(folder / "gone")
    else:
        (folder / name).write_bytes(LFS_POINTER)
    assert read_checkpoint(folder, "tiny").files == ("model.safetensors",)


def test_broken_link(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "gone")
    assert "model.safetensors is a link to a file that is not there" in message_of(folder)
