"""Whether a checkpoint holds layers that predict further tokens (MTP, "next n").

transformers reads none of them and so saves none, while the configuration still counts them, and
llama.cpp's converter then asks for what is not there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["has_next_layers", "names_next_layers", "tensor_names"]

_BLOCK = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_OTHER_PARTS = ("vision", "visual", "audio", "encoder")


def has_next_layers(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether there are any; True where the names of tensors are not known.

    Args:
        folder: of the checkpoint.
        config: of config.json.
    """
    names = list(tensor_names(folder))
    return not names or names_next_layers(names, config)


def names_next_layers(names: Iterable[str], config: Mapping[str, Any]) -> bool:
    """Whether tensors of these names are of such layers: called so, or behind the last layer."""
    text = config.get("text_config") or config
    n_layer = text.get("num_hidden_layers")
    for name in names:
        if any(part in name for part in _OTHER_PARTS):
            continue
        if "mtp." in name or "nextn" in name:
            return True
        block = _BLOCK.search(name)
        if block and isinstance(n_layer, int) and int(block[1]) >= n_layer:
            return True
    return False


def tensor_names(folder: Path) -> Iterator[str]:
    """As the weight files' heads, or the index of PyTorch's own, say; none without either."""
    for path in sorted(folder.glob("model*.safetensors")):
        with path.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            yield from (name for name in header if name != "__metadata__")
    for path in folder.glob("pytorch_model*.bin.index.json"):
        yield from json.loads(path.read_text(encoding="utf-8")).get("weight_map", ())
