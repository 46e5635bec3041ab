"""A checkpoint as the converter takes it: in transformers' layout, its class named in config.json.

Runs in the child process. Of a checkpoint whose configuration names no class there is a folder with
links to its files and a complete config.json: the converter reads that file several times. Of one
in LLaVA's original layout the folder holds links to the files, the configuration in transformers'
words, and, where the checkpoint has no vision tower, the tower's tensors in a file of their own.
:func:`atp_cpp.convert.llava.canonical_name` knows the tensors' names in both layouts.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atp_cpp.convert.class_names import name_by_type
from atp_cpp.convert.next_layers import tensor_names
from atp_cpp.convert.original_llava import (
    has_tower,
    hf_config,
    is_original,
    known_tower,
    preprocessor,
    tower_name,
)
from atp_cpp.errors import ConvertError

__all__ = ["in_hf_layout"]

_PREFIX = "vision_tower.vision_model."
_BARE = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
_WRITTEN = ("config.json", "preprocessor_config.json", "processor_config.json")


@contextmanager
def in_hf_layout(folder: Path, tower: str, beside: Path) -> Iterator[Path]:
    """The folder itself, or a temporary one in transformers' layout.

    Args:
        folder: of a checkpoint.
        tower: folder of the vision tower, "" where the checkpoint holds it.
        beside: where the temporary folder may be.

    Raises:
        ConvertError: the layout, or the tower, is one that cannot be converted.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    original = is_original(config)
    if not original and not name_by_type(config):
        yield folder
        return
    with tempfile.TemporaryDirectory(dir=beside if beside.is_dir() else None) as made:
        view = Path(made)
        if original:
            _lay_out(folder, config, tower, view)
        else:
            _link(folder, view, ("config.json",))
            _write(view / "config.json", config)
        yield view


def _lay_out(folder: Path, config: dict[str, Any], tower: str, view: Path) -> None:
    made = hf_config(config, _tower_config(config, tower))
    _write(view / "config.json", made)
    _write(view / "preprocessor_config.json", preprocessor(config, made))
    indices = list(folder.glob("*.index.json"))
    _link(folder, view, (*_WRITTEN, *(index.name for index in indices)))
    safe = any(folder.glob("model*.safetensors"))
    stem, suffix = ("model", ".safetensors") if safe else ("pytorch_model", ".bin")
    file = f"{stem}-vision-tower{suffix}"
    # of one PyTorch file without an index the names are not known: a tower in it is read later, and
    # so takes the place of this one's tensors
    inside = has_tower(list(tensor_names(folder)))
    names = _write_tower(Path(tower), view / file) if tower and not inside else []
    for index in indices:
        content = json.loads(index.read_text(encoding="utf-8"))
        if index.name == f"{stem}{suffix}.index.json":
            content["weight_map"] |= dict.fromkeys(names, file)
        _write(view / index.name, content)


def _link(folder: Path, view: Path, but: Collection[str]) -> None:
    for path in folder.iterdir():
        if path.name not in but:
            (view / path.name).symlink_to(path.absolute())


def _tower_config(config: dict[str, Any], tower: str) -> dict[str, Any]:
    if tower:
        path = Path(tower) / "config.json"
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content
    known = known_tower(tower_name(config))
    if known is None:
        raise ConvertError(
            f"the vision tower is {tower_name(config)}, whose configuration is not here; name its "
            "folder with --vision-tower"
        )
    return known


def _write_tower(folder: Path, path: Path) -> list[str]:
    """Writes the encoder's tensors under transformers' names; the rest of CLIP stays out."""
    import torch
    from safetensors.torch import load_file, save_file

    files = sorted(folder.glob("model*.safetensors"))
    tensors: dict[str, Any] = {}
    for file in files or sorted(folder.glob("pytorch_model*.bin")):
        if files:
            content = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        for name, tensor in content.items():
            short = name.removeprefix("vision_tower.").removeprefix("vision_model.")
            known = short != name or name.startswith(_BARE)
            if known and not name.startswith("text_model.") and not short.endswith("position_ids"):
                tensors[_PREFIX + short] = tensor.contiguous()
    if not tensors:
        raise ConvertError(f"{folder}: no tensor of a vision tower; expected CLIP's vision_model.*")
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return list(tensors)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
