"""Checks every weight before it is written: a weight that is NaN or infinite spoils every answer.

Runs in the child process, around the tensors of llama.cpp's GGUFWriter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atp_cpp.errors import ConvertError

__all__ = ["Finite", "all_finite"]

_BLOCK = 1 << 22  # bytes looked at at once


class Finite:
    """Replaces a tensor in the writer, and checks the tensor when it is written.

    Args:
        name: name of the tensor in the file.
        kind: type of the tensor in the file, by ggml's name.
        tensor: the tensor to write: an array, or a lazy tensor that is read when it is written.
    """

    def __init__(self, name: str, kind: str, tensor: Any) -> None:
        self._name, self._kind, self._tensor = name, kind, tensor
        if hasattr(tensor, "_chunks"):  # a tensor that is never whole in memory
            tensor._chunks = [self._looked_at(load) for load in tensor._chunks]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return int(self._tensor.nbytes)

    def tofile(self, stream: Any) -> None:
        """Writes it.

        Raises:
            ConvertError: a weight is NaN or infinite.
        """
        tensor = self._tensor
        if hasattr(type(tensor), "to_eager"):
            tensor = type(tensor).to_eager(tensor)
        if isinstance(tensor, np.ndarray):
            self._check(tensor, self._kind)
        tensor.tofile(stream)

    def _looked_at(self, load: Callable[[], Any]) -> Callable[[], Any]:
        def looked_at() -> Any:
            chunk = load()
            self._check(chunk, "")
            return chunk

        return looked_at

    def _check(self, array: NDArray[Any], kind: str) -> None:
        if not all_finite(array, kind):
            raise ConvertError(
                f"{self._name} has weights that are no numbers (NaN or infinite); the checkpoint "
                "is damaged, or its training diverged: get it again"
            )


def all_finite(array: NDArray[Any], kind: str) -> bool:
    """Whether all weights are numbers.

    Args:
        array: as it is written.
        kind: ggml's name of its type, where its bytes are not NumPy floats: BF16 or Q8_0, whose
            blocks of 34 bytes begin with a scale in float16. Others are not looked into.
    """
    if array.dtype.kind == "f":
        flat, n = array.reshape(-1), _BLOCK // array.itemsize
        return all(np.isfinite(flat[i : i + n]).all() for i in range(0, flat.size, n))
    raw = array.reshape(-1).view(np.uint8)
    if kind == "BF16":
        parts = (raw[i : i + _BLOCK].view(np.uint16) for i in range(0, raw.size, _BLOCK))
        return not any(((part & 0x7F80) == 0x7F80).any() for part in parts)
    if kind == "Q8_0":
        scales = np.ascontiguousarray(raw.reshape(-1, 34)[:, :2]).view(np.float16)
        return bool(np.isfinite(scales).all())
    return True
