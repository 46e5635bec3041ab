"""Small Hugging Face folders with noise for weights: what the converter's front door sees."""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

CONFIG = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}
TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a.bias": np.ones(3, np.float16),
    "b.weight": np.zeros((2, 5), np.float32),
    "scale": np.array(2.0, np.float32),
}
PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 12345\n"
)


def write_checkpoint(folder, *, sharded=False, config=CONFIG, tensors=TENSORS):
    """config.json, a tokenizer's file and the weights, in one file or in two with an index."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    if not sharded:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = sorted(tensors)
    index = {}
    for file, part in zip(PARTS, (names[:2], names[2:]), strict=True):
        save_file({name: tensors[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


@contextlib.contextmanager
def unprivileged_folder():
    """A new folder, in it a user whom permissions bind: nobody, where the tests run as root."""
    folder = Path(tempfile.mkdtemp())
    root = os.geteuid() == 0
    try:
        if root:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        yield folder
    finally:
        if root:
            os.seteuid(0)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        shutil.rmtree(folder)
