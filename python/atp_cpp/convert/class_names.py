"""The classes by which llama.cpp's converter takes a checkpoint, where config.json lacks them.

Runs in the child process; transformers knows a class for each ``model_type``.
"""

from __future__ import annotations

import logging
from typing import Any

from atp_cpp.errors import ConvertError

__all__ = ["name_by_type", "text_architecture"]

_log = logging.getLogger(__name__)


def name_by_type(config: dict[str, Any]) -> bool:
    """Puts in the class that model_type has in transformers, where config.json names none.

    A base class (Qwen2_5_VLModel), which save_pretrained of a part of the model leaves, counts as
    none: its tensors are those of the whole model, but for the prefix of their names.

    Returns:
        Whether the configuration was changed.
    """
    from conversion import MMPROJ_MODEL_MAP, TEXT_MODEL_MAP
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as BY_TYPE,
    )

    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    known = BY_TYPE.get(str(config.get("model_type", "")))
    base = name.endswith("Model") and name not in (*MMPROJ_MODEL_MAP, *TEXT_MODEL_MAP)
    if isinstance(known, str) and (not name or base):
        config["architectures"] = [known]
        _log.warning(
            "config.json names %s; taken for %s by its model_type, %r",
            f"the base class {name}" if name else "no architecture",
            known,
            config["model_type"],
        )
        return True
    return False


def text_architecture(text_config: dict[str, Any]) -> str:
    """The class of the language model alone; many LLaVA configurations name its type only."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named = text_config.get("architectures")
    kind = text_config.get("model_type", "")
    name = named[0] if named else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if not isinstance(name, str):
        raise ConvertError(
            f"text_config.model_type is {kind!r}: transformers has no model of the text alone for "
            "it, by whose name llama.cpp's converter could take it; a text_config with "
            '"architectures" would name one'
        )
    return name
