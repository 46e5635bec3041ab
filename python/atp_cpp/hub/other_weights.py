"""Weight files beside a checkpoint's own: which of them must not be left out silently.

A converter reads the weights that the checkpoint's index names. An adapter or a trained projector
beside them belongs to the model that the user means, and the files of the base model alone would
answer otherwise. Knows file names only.
"""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatch

from atp_cpp.errors import ConvertError

__all__ = ["is_adapter", "refuse_additions", "refuse_two_sets", "unread"]

_ADAPTER = ("adapter_config.json", "adapter_model*.safetensors", "adapter_model*.bin")
_LLAVA_LORA = "non_lora_trainables.bin"
_LLAVA_PROJECTOR = "mm_projector.bin"
# the same weights once more: in Mistral's own layout, or in another type (model.fp16.safetensors)
_SAME_AGAIN = ("consolidated*.safetensors", "model.*.safetensors")


def is_adapter(name: str) -> bool:
    """Whether a file of this name belongs to an adapter of the peft package."""
    return any(fnmatch(name, pattern) for pattern in _ADAPTER)


def refuse_additions(where: str, names: Collection[str], *, original: bool) -> None:
    """Refuses trained parts that lie beside complete weights.

    Args:
        where: folder or repository, for the message.
        names: of all files in it.
        original: in LLaVA's original layout, whose weights hold a projector, which its loader
            reads; or not known to be in another one.

    Raises:
        ConvertError: the file, and how it becomes part of the weights.
    """
    adapters = sorted(name for name in names if is_adapter(name))
    if _LLAVA_LORA in names:
        raise ConvertError(
            f"{where}: {_LLAVA_LORA} lies beside the weights; LLaVA's LoRA training wrote it, and "
            "a conversion of the weights alone would leave it out; merge both first (LLaVA's "
            "scripts/merge_lora_weights.py) and convert the merged folder"
        )
    if adapters:
        weights = next((name for name in adapters if "model" in name), adapters[0])
        raise ConvertError(
            f"{where}: {weights} lies beside the weights; it is an adapter (PEFT), and a "
            "conversion of the weights alone would leave it out; merge it with "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload(), save that with "
            "save_pretrained and convert the saved folder, or convert a folder without adapter_* "
            "to get the base model"
        )
    if _LLAVA_PROJECTOR in names and not original:
        raise ConvertError(
            f"{where}: {_LLAVA_PROJECTOR} lies beside the weights; it is a projector trained in "
            "LLaVA's original layout, and a conversion would leave it out; load it into the model "
            "and save that with save_pretrained, or convert a folder without it"
        )


def refuse_two_sets(where: str, names: Collection[str], files: Collection[str], index: str) -> None:
    """Refuses an index beside weights in one file that it does not name.

    transformers reads the one file then, and llama.cpp's converter the files of the index.

    Args:
        where: the folder.
        names: of all files in it.
        files: that the index names.
        index: its name.

    Raises:
        ConvertError: both, and which to take away.
    """
    whole = index.removesuffix(".index.json")
    if whole in names and whole not in files:
        raise ConvertError(
            f"{where}: two sets of weights, {whole} and the files that {index} names; remove one "
            f"of them ({whole}, or {index} with its files)"
        )


def unread(names: Collection[str], files: Collection[str]) -> list[str]:
    """Names of safetensors files that are not read, and are not the same weights once more."""
    return sorted(
        name
        for name in names
        if name.endswith(".safetensors")
        and name not in files
        and not any(fnmatch(name, pattern) for pattern in _SAME_AGAIN)
    )
