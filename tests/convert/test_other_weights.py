"""Weights beside a checkpoint's own: refused, or named in a note; never left out in silence."""

import json
import logging
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from atp_cpp import ConvertError
from atp_cpp.convert.checkpoint import read_checkpoint
from atp_cpp.convert.identity import checkpoint_id
from support.checkpoint_files import CONFIG, INDEX, TENSORS, write_checkpoint
from support.hub_standin import refused


def refusal(folder):
    with pytest.raises(ConvertError) as caught:
        read_checkpoint(folder, "tiny")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(folder, name):
    """A file that a reader of names and heads takes for what it is called."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if name.endswith(".safetensors"):
        save_file({"x": TENSORS["scale"]}, path)
    else:
        path.write_text("{}")


ADDITIONS = {
    "adapter_config.json": "merge_and_unload",
    "adapter_model.safetensors": "merge_and_unload",
    "adapter_model.bin": "merge_and_unload",
    "adapter_model-00001-of-00002.safetensors": "merge_and_unload",
    "non_lora_trainables.bin": "merge_lora_weights.py",
    "mm_projector.bin": "save_pretrained",
}


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("name", "way_out"), ADDITIONS.items(), ids=ADDITIONS)
def test_a_trained_part_beside_the_weights(tmp_path, name, way_out, sharded):
    folder = write_checkpoint(tmp_path / "hf", sharded=sharded)
    put(folder, name)
    message = refusal(folder)
    assert message.startswith(f"{folder}: {name} lies beside the weights")
    assert way_out in message
    (folder / name).unlink()
    read_checkpoint(folder, "tiny")  # the file, and nothing else, was in the way


def test_the_weights_of_an_adapter_are_named_before_its_configuration(tmp_path):
    folder = write_checkpoint(tmp_path / "hf")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        put(folder, name)
    assert "adapter_model.safetensors lies beside" in refusal(folder)


def test_a_projector_beside_weights_that_hold_one(tmp_path):
    """LLaVA's own repositories keep mm_projector.bin beside complete weights; nobody reads it."""
    config = CONFIG | {"mm_vision_tower": "openai/clip-vit-large-patch14-336"}
    folder = write_checkpoint(tmp_path / "hf", config=config)
    put(folder, "mm_projector.bin")
    read_checkpoint(folder, "tiny")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "non_lora_trainables.bin"])
def test_a_trained_part_in_a_repository(hub, name):
    hub.files[name] = b"x"
    message = refused("org/tiny")
    assert message.startswith(f"org/tiny: {name} lies beside the weights")
    assert not hub.gets("config.json")  # nothing was downloaded for it


def test_an_index_beside_weights_that_it_does_not_name(tmp_path):
    """A model saved in one file over shards: transformers reads the file, llama.cpp the shards."""
    folder = write_checkpoint(tmp_path / "hf", sharded=True)
    save_file(TENSORS, folder / "model.safetensors")
    message = refusal(folder)
    assert f"two sets of weights, model.safetensors and the files that {INDEX} names" in message
    (folder / INDEX).write_text(
        json.dumps({"weight_map": dict.fromkeys(TENSORS, "model.safetensors")})
    )
    assert read_checkpoint(folder, "tiny").files == ("model.safetensors",)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("mtp.safetensors", "not read: mtp.safetensors; the weights are model.safetensors"),
        ("lora/adapter_config.json", "the adapter in its folder lora is not part of what"),
    ],
)
def test_what_is_not_read_is_named(tmp_path, caplog, name, note):
    folder = write_checkpoint(tmp_path / "hf")
    put(folder, name)
    with caplog.at_level(logging.WARNING):
        read_checkpoint(folder, "tiny")
    assert [note in record.getMessage() for record in caplog.records] == [True]


def test_shards_that_the_index_does_not_name(tmp_path, caplog):
    folder = write_checkpoint(tmp_path / "hf", sharded=True)
    put(folder, "model-00003-of-00003.safetensors")
    read_checkpoint(folder, "tiny")
    assert "not read: model-00003-of-00003.safetensors; the weights are model-00001" in caplog.text


def test_the_same_weights_once_more_need_no_word(tmp_path, caplog):
    folder = write_checkpoint(tmp_path / "hf", sharded=True)
    others = ("consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin")
    for name in (*others, "training_args.bin", "optimizer.pt"):
        put(folder, name)
    read_checkpoint(folder, "tiny")
    assert not caplog.records


# ---- the hash by which the files of one conversion know each other


def identity(folder):
    return checkpoint_id(read_checkpoint(folder, "tiny"))


def test_a_checkpoint_is_known_by_its_weights(tmp_path):
    one = identity(write_checkpoint(tmp_path / "a"))
    assert len(one) == 32
    assert identity(write_checkpoint(tmp_path / "b", sharded=True)) == one  # in other files
    renamed = {f"model.{name}": array for name, array in TENSORS.items()}
    assert identity(write_checkpoint(tmp_path / "c", tensors=renamed)) == one
    for changed in (
        {"a.weight": TENSORS["a.weight"] + 1},
        {"a.weight": TENSORS["a.weight"].T.copy()},
        {"a.bias": TENSORS["a.bias"].astype(np.float32)},
        {"c": TENSORS["a.bias"]},
    ):
        folder = write_checkpoint(tmp_path / "d", tensors=TENSORS | changed)
        assert identity(folder) != one, changed


def test_pytorchs_own_files_are_known_by_their_checksums(tmp_path):
    def written(name, content):
        folder = write_checkpoint(tmp_path / name)
        (folder / "model.safetensors").unlink()
        with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
            archive.writestr("data/0", content)
        return identity(folder)

    assert written("a", b"weights") == written("b", b"weights") != written("c", b"Weights")
