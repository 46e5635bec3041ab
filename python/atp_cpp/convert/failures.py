"""The message on an exception from another package: never only the name of its class."""

from __future__ import annotations

import traceback
from pathlib import Path

__all__ = ["failure"]


def failure(error: BaseException) -> str:
    """One line: what the exception says, or where it came from if it says nothing."""
    said = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, KeyError) and said:
        return f"it looks for {said} in config.json or the weights, which is not there"
    if type(error).__name__ == "UnpicklingError":  # PyTorch's text advises to run code in the file
        return (
            "a weight file holds Python objects beside tensors, which are never run here; save the "
            "model as safetensors, where its source is trusted"
        )
    if said:
        return said
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "it gives no reason; --verbose shows more"
    last = frames[-1]
    where = f"{Path(last.filename).name}:{last.lineno}: {last.line}"
    return f"a check without a message failed ({where}); --verbose shows the way there"
