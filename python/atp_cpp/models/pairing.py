"""Whether a vision projector belongs to a text model, judged by the metadata of both files.

llama.cpp accepts every projector of the right width, and with the wrong projector the answers are
nonsense. This module compares the checkpoint that `atp-cpp convert` noted in both files, the
projector's kind with the text model's architecture, and the names. It reports a problem only if
both files say enough: old projector files have the name of their encoder, or no name.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from atp_cpp.models.gguf_header import Value, read_metadata

__all__ = ["CHECKPOINT_KEY", "PROJECTOR_ARCHS", "describe", "projector_kind", "why_no_pair"]

CHECKPOINT_KEY = "atp.checkpoint"  # a hash of the weights that a file was converted from

# kind of projector -> general.architecture of its text models; other kinds go with many models
PROJECTOR_ARCHS: dict[str, tuple[str, ...]] = {
    "qwen2vl_merger": ("qwen2vl", "llama"),
    "qwen2.5vl_merger": ("qwen2vl",),
    "qwen2.5o": ("qwen2vl",),
    "qwen3vl_merger": ("qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen4exp"),
    "gemma3": ("gemma3",),
    "gemma3nv": ("gemma3n",),
    "gemma4v": ("gemma4",),
    "gemma4uv": ("gemma4",),
    "glm4v": ("glm4", "glm4moe"),
    "llama4": ("llama4",),
    "lfm2": ("lfm2", "lfm2moe"),
    "cogvlm": ("cogvlm",),
    "kimivl": ("deepseek2",),
    "hunyuanvl": ("hunyuan_vl",),
    "exaone4_5": ("exaone4",),
    "minicpmv4_6": ("qwen35",),
    "mimovl": ("mimo2",),
    "phi4": ("phi3",),
}
_TYPE = re.compile(r"\b(?:bf16|fp?16|fp?32|i?q\d\w*)\b")
_HASH = re.compile(r"[0-9a-f]{12,}")  # a folder of the hub's cache is named for its commit
# words that do not distinguish models
_NOISE = frozenset(
    (
        *("a", "and", "checkpoint", "encoder", "eye", "for", "gguf", "hf", "image", "main"),
        *("merged", "mmproj", "model", "models", "of", "output", "projector", "snapshot", "text"),
        *("the", "tmp", "tower", "v", "vision", "vit"),
    )
)


def why_no_pair(model: str | os.PathLike[str], mmproj: str | os.PathLike[str]) -> str:
    """Why a projector probably does not belong to the text model; "" if no reason was found.

    Args:
        model: GGUF of the text model.
        mmproj: GGUF of the projector.

    Raises:
        ModelError: a file that is no GGUF.
    """
    text, vision = read_metadata(model), read_metadata(mmproj)
    names = Path(model).name, Path(mmproj).name
    kind, arch = projector_kind(vision), str(text.get("general.architecture", ""))
    fitting = PROJECTOR_ARCHS.get(kind)
    if fitting is not None and arch not in fitting:
        return (
            f"{names[1]} is a projector of kind {kind}, for text models of architecture "
            f"{' or '.join(fitting)}; {names[0]} is {arch}"
        )
    ours, theirs = text.get(CHECKPOINT_KEY), vision.get(CHECKPOINT_KEY)
    if ours is not None and theirs is not None:
        if ours == theirs:
            return ""
        return (
            f"{names[0]} and {names[1]} were converted from different weights "
            f"({describe(text) or 'no name'}; {describe(vision) or 'no name'})"
        )
    if _agree(text, vision):
        return ""
    return f"{names[0]} says it is {describe(text)}, and {names[1]} {describe(vision)}"


def projector_kind(metadata: Mapping[str, Value]) -> str:
    """Kind of a projector file, as libmtmd names it.

    Files that hold an audio encoder, too, have a key for each.
    """
    keys = ("clip.projector_type", "clip.vision.projector_type")
    return next((str(metadata[key]) for key in keys if metadata.get(key)), "mlp")


def describe(metadata: Mapping[str, Value]) -> str:
    """What a file says of its model: its name, and the models it was made from; "" if nothing."""
    name = metadata.get("general.name") or metadata.get("general.basename") or ""
    bases = list(dict.fromkeys(_bases(metadata)))
    return " ".join(
        [*([str(name)] if name else []), *([f"from {', '.join(bases[:3])}"] if bases else [])]
    )


def _agree(text: Mapping[str, Value], vision: Mapping[str, Value]) -> bool:
    """Whether both names may be of one model; True also if a file does not say enough."""
    if vision.get("general.type") != "mmproj":
        return True  # files of an old script have the name of the encoder or of a folder
    ours, theirs = _own(text), _own(vision)
    if not ours or not theirs:
        return True
    # one model may be trained further from the other; two models from one base are different models
    ours_from = [words for name in _bases(text) if (words := _words(name))]
    theirs_from = [words for name in _bases(vision) if (words := _words(name))]
    pairs = [*_pairs(ours, theirs), *_pairs(ours_from, theirs), *_pairs(ours, theirs_from)]
    return any(one <= other or other <= one for one, other in pairs)


def _pairs(
    ones: list[Counter[str]], others: list[Counter[str]]
) -> Iterator[tuple[Counter[str], Counter[str]]]:
    return ((one, other) for one in ones for other in others)


def _own(metadata: Mapping[str, Value]) -> list[Counter[str]]:
    """The words of a file's own names, those left out that say nothing."""
    names = (metadata.get(f"general.{key}") for key in ("name", "basename"))
    return [words for name in names if name and (words := _words(str(name)))]


def _bases(metadata: Mapping[str, Value]) -> Iterator[str]:
    count = metadata.get("general.base_model.count", 0)
    for number in range(count if isinstance(count, int) else 0):
        if name := metadata.get(f"general.base_model.{number}.name"):
            yield str(name)
        elif url := metadata.get(f"general.base_model.{number}.repo_url"):
            yield str(url).rstrip("/").rsplit("/", 1)[-1]


def _words(name: str) -> Counter[str]:
    """Gemma-3-4B-It and "gemma3 4b it" are the same words: gemma, 3, 4, b, it."""
    last = name.lower().replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    if _HASH.fullmatch(last):
        return Counter()
    last = _TYPE.sub(" ", last.replace("_", " "))
    return Counter(w for w in re.findall(r"[^\W\d_]+|\d+", last) if w not in _NOISE)
