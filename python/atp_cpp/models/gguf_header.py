"""Key-value pairs and tensor shapes of a GGUF file, without its weights; tensors one by one.

Enough to tell a text model from a vision projector before anything is loaded. Format: GGUF versions
2 and 3, little endian, as ggml's gguf.cpp reads it.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from atp_cpp.errors import ModelError

T = TypeVar("T")
Value: TypeAlias = "int | float | bool | str | list[int | float | bool | str]"

# type id in the file -> struct format; 8 is a string, 9 an array
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING = 8
_ARRAY = 9
_ALIGNMENT = 32  # of the tensors, unless general.alignment says another
_MAX_KEPT = 1024  # array elements that are kept; the others, as of a vocabulary, are skipped
_MAX_STRING = 1 << 26  # bytes; a longer string means a damaged file
_MAX_LENGTH = 1 << 40  # elements; a longer array means a damaged file


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor is.

    Attributes:
        shape: ne, fastest dimension first.
        type: ggml's id of the element type; 0 is float32.
        offset: bytes from the start of the file.
    """

    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What the head of the file says.

    Attributes:
        metadata: key -> value; of long arrays the first 1024 elements.
        tensors: tensor name -> where it is.
    """

    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> ne, fastest dimension first."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def arch(self) -> str:
        """general.architecture, "" if absent."""
        return str(self.metadata.get("general.architecture", ""))


def read_header(path: str | os.PathLike[str]) -> GgufHeader:
    """Reads the head of a GGUF file.

    Raises:
        ModelError: no such file, not a GGUF, of an unknown version, or cut short.
    """
    return _opened(path, _read)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Value]:
    """Reads the keys before the tokenizer's, which are the long part of a text model's head.

    Raises:
        ModelError: see read_header.
    """

    def read(stream: BinaryIO, name: str) -> dict[str, Value]:
        _, n_pairs = _read_counts(stream, name)
        return _read_pairs(stream, n_pairs, until="tokenizer.")

    return _opened(path, read)


def _opened(path: str | os.PathLike[str], read: Callable[[BinaryIO, str], T]) -> T:
    """Reads a file, and names what is wrong with it."""
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as stream:
            return read(stream, name)
    except FileNotFoundError:
        raise ModelError(f"{name}: no such file; check the path") from None
    except IsADirectoryError:
        raise ModelError(
            f"{name}: expected a GGUF file, got a directory; name the file in it"
        ) from None
    except PermissionError:
        raise ModelError(f"{name}: no permission to read this file") from None
    except OSError as error:
        raise ModelError(f"{name}: cannot be read: {error.strerror or error}") from error
    except (struct.error, EOFError, UnicodeDecodeError, KeyError) as error:
        raise ModelError(
            f"{name}: the GGUF header is cut short or damaged; download or convert the file again"
        ) from error


def _read_counts(stream: BinaryIO, name: str) -> tuple[int, int]:
    """Magic and version, checked; numbers of tensors and of keys."""
    magic = stream.read(4)
    if magic != b"GGUF":
        got = f"a file that begins with {magic!r}" if magic else "an empty file"
        raise ModelError(
            f"{name}: expected a GGUF file, got {got}; convert the model to GGUF first"
        )
    version = _scalar(stream, "I")
    if version not in (2, 3):
        raise ModelError(
            f"{name}: expected GGUF version 2 or 3, got {version}; convert the model again"
        )
    return int(_scalar(stream, "Q")), int(_scalar(stream, "Q"))


def _read_pairs(stream: BinaryIO, n_pairs: int, until: str | None = None) -> dict[str, Value]:
    """Keys and values, up to the first key that begins with `until`."""
    metadata: dict[str, Value] = {}
    for _ in range(n_pairs):
        key = _string(stream)
        if until is not None and key.startswith(until):
            break
        metadata[key] = _value(stream, int(_scalar(stream, "I")))
    return metadata


def _read(stream: BinaryIO, name: str) -> GgufHeader:
    n_tensors, n_pairs = _read_counts(stream, name)
    metadata = _read_pairs(stream, n_pairs)
    infos: list[tuple[str, TensorInfo]] = []
    for _ in range(n_tensors):
        tensor = _string(stream)
        n_dims = int(_scalar(stream, "I"))
        if n_dims > 8:
            raise EOFError
        shape = tuple(int(_scalar(stream, "Q")) for _ in range(n_dims))
        infos.append(
            (tensor, TensorInfo(shape, int(_scalar(stream, "I")), int(_scalar(stream, "Q"))))
        )
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise EOFError
    start = -(-stream.tell() // alignment) * alignment
    tensors = {
        tensor: TensorInfo(info.shape, info.type, start + info.offset) for tensor, info in infos
    }
    return GgufHeader(metadata, tensors)


def read_tensor(path: str | os.PathLike[str], header: GgufHeader, name: str) -> NDArray[np.float32]:
    """The values of a float32 tensor, [n] in the file's order.

    Args:
        path: the file `header` was read from.
        header: its head.
        name: of a tensor in it with type 0.

    Raises:
        ModelError: the file ends before the tensor does.
    """
    info = header.tensors[name]
    n_bytes = 4 * math.prod(info.shape)
    source = Path(path)
    if n_bytes > source.stat().st_size - info.offset:
        raise ModelError(f"{source}: cut short inside tensor {name}; download it again")
    with source.open("rb") as stream:
        stream.seek(info.offset)
        return np.frombuffer(stream.read(n_bytes), dtype="<f4")


def _scalar(stream: BinaryIO, form: str) -> int | float | bool:
    data = stream.read(struct.calcsize("<" + form))
    value: int | float | bool = struct.unpack("<" + form, data)[0]
    return value


def _string(stream: BinaryIO) -> str:
    length = int(_scalar(stream, "Q"))
    if length > _MAX_STRING:
        raise EOFError
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data.decode("utf-8", errors="replace")


def _value(stream: BinaryIO, kind: int) -> Value:
    if kind == _STRING:
        return _string(stream)
    if kind != _ARRAY:
        return _scalar(stream, _SCALARS[kind])
    element = int(_scalar(stream, "I"))
    length = int(_scalar(stream, "Q"))
    if length > _MAX_LENGTH:
        raise EOFError
    kept: list[int | float | bool | str] = []
    if element == _STRING:
        for i in range(length):
            text = _string(stream)
            if i < _MAX_KEPT:
                kept.append(text)
        return kept
    form = _SCALARS[element]
    kept.extend(_scalar(stream, form) for _ in range(min(length, _MAX_KEPT)))
    stream.seek((length - len(kept)) * struct.calcsize("<" + form), os.SEEK_CUR)
    return kept
