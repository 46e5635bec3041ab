"""Seeded random tensors and the streaming GGUF writer under all generated models.

In: a metadata dictionary and a list of `TensorSpec`. Out: one GGUF file, byte-identical for the
same input. A tensor's values depend on the seed and its own name only, so files of one seed that
differ in weight type, or in the number of layers, hold the same weights where they have the same
tensors. Tensors are made and written one at a time: memory stays at the size of the largest one.

This module knows nothing of architectures.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as GgmlType

Floats = npt.NDArray[np.float32]
Metadata = Mapping[str, bool | int | float | str | Sequence[Any]]

WEIGHT_TYPES = {
    "f32": GgmlType.F32,
    "f16": GgmlType.F16,
    "q8_0": GgmlType.Q8_0,
    "q4_0": GgmlType.Q4_0,
}
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7}  # general.file_type
BLOCK = 32  # weights in one Q8_0 or Q4_0 block


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor to be drawn from a normal distribution.

    Attributes:
        name: the tensor's name in the file.
        shape: NumPy order, i.e. (rows out, columns in) for a matrix.
        std: standard deviation of the entries.
        mean: mean of the entries.
        keep_f32: norms, biases and small tables, which llama.cpp never quantizes.
        edit: changes the float values in place before they are converted.
    """

    name: str
    shape: tuple[int, ...]
    std: float = 0.0
    mean: float = 0.0
    keep_f32: bool = False
    edit: Callable[[Floats], None] | None = None


def matrix(name: str, n_out: int, n_in: int, gain: float = 1.0, **kwargs: Any) -> TensorSpec:
    """A weight [n_out, n_in] that maps unit-variance rows to rows of standard deviation `gain`."""
    return TensorSpec(name=name, shape=(n_out, n_in), std=gain / math.sqrt(n_in), **kwargs)


def norm(name: str, size: int, mean: float = 1.0, **kwargs: Any) -> TensorSpec:
    """A norm weight [size], spread by a tenth of its mean so that channels can be told apart."""
    return TensorSpec(name=name, shape=(size,), std=0.1 * mean, mean=mean, keep_f32=True, **kwargs)


def vector(name: str, size: int, std: float, **kwargs: Any) -> TensorSpec:
    """A bias or small table [size]."""
    return TensorSpec(name=name, shape=(size,), std=std, keep_f32=True, **kwargs)


def rng_for(seed: int, name: str) -> np.random.Generator:
    """The random stream of one tensor: a function of the seed and the tensor's name alone."""
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))


def draw(spec: TensorSpec, seed: int) -> Floats:
    """The float values of a tensor, [*spec.shape]."""
    values = rng_for(seed, spec.name).standard_normal(spec.shape, dtype=np.float32)
    values *= np.float32(spec.std)
    values += np.float32(spec.mean)
    if spec.edit is not None:
        spec.edit(values)
    return values


def storage_type(spec: TensorSpec, weight_type: str) -> GgmlType:
    """The type a tensor is stored in: F32 where it must be, else the file's weight type.

    Convolution kernels (4 axes) and rows that do not fill whole blocks stay floats, as in
    llama.cpp's own converters.

    Raises:
        ValueError: unknown weight type.
    """
    if weight_type not in WEIGHT_TYPES:
        raise ValueError(f"weight type {weight_type!r} is not one of {', '.join(WEIGHT_TYPES)}")
    wanted = WEIGHT_TYPES[weight_type]
    if spec.keep_f32:
        return GgmlType.F32
    if wanted in (GgmlType.Q8_0, GgmlType.Q4_0) and (
        len(spec.shape) > 3 or spec.shape[-1] % BLOCK != 0
    ):
        return GgmlType.F16
    return wanted


def _values(spec: TensorSpec, stored: GgmlType, seed: int) -> Iterator[npt.NDArray[Any]]:
    """The exact way: draw floats, convert."""
    floats = draw(spec, seed)
    if stored == GgmlType.F32:
        yield floats
    elif stored == GgmlType.F16:
        yield floats.astype(np.float16)
    else:
        yield gguf.quants.quantize(floats, stored)


def _random_blocks(spec: TensorSpec, stored: GgmlType, seed: int) -> Iterator[npt.NDArray[Any]]:
    """The fast way for big files: uniform random quants under one scale, no floats in between.

    Entries are uniform with mean zero and standard deviation `spec.std`; quant values that would
    shift the mean (-128 in Q8_0, 0 in Q4_0) are replaced by the neutral one.
    """
    n_blocks = math.prod(spec.shape) // BLOCK
    rng = rng_for(seed, spec.name)
    if stored == GgmlType.Q8_0:
        n_bytes, levels = BLOCK, np.arange(256, dtype=np.uint8)
        levels[128] = 0
        spread = math.sqrt(sum(q * q for q in range(-127, 128)) / 256)
    else:
        n_bytes, nibbles = BLOCK // 2, np.arange(16, dtype=np.uint8)
        nibbles[0] = 8
        levels = (nibbles[:, None] * 16 + nibbles[None, :]).astype(np.uint8).reshape(-1)
        spread = math.sqrt(sum(q * q for q in range(-7, 8)) / 16)
    scale = np.float16(spec.std / spread).tobytes()
    step = 1 << 20
    for start in range(0, n_blocks, step):
        count = min(step, n_blocks - start)
        out = np.empty((count, 2 + n_bytes), dtype=np.uint8)
        out[:, :2] = np.frombuffer(scale, dtype=np.uint8)
        raw = np.frombuffer(rng.bytes(count * n_bytes), dtype=np.uint8)
        out[:, 2:] = levels[raw].reshape(count, n_bytes)
        yield out


def _add_metadata(writer: gguf.GGUFWriter, metadata: Metadata) -> None:
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, list(value))


def write_gguf(
    path: Path,
    *,
    arch: str,
    metadata: Metadata,
    tensors: Sequence[TensorSpec],
    weight_type: str,
    seed: int,
    fast_blocks: bool = False,
) -> None:
    """Write one GGUF file.

    Args:
        path: the file to write; an existing one is replaced.
        arch: `general.architecture`.
        metadata: key to bool, int (stored as u32), float (f32), string or array of one of them.
        tensors: what to draw, in file order.
        weight_type: f32, f16, q8_0 or q4_0, for everything that may be quantized.
        seed: of all random values.
        fast_blocks: draw quantized tensors directly as blocks (`edit` is refused for them);
            meant for files of gigabytes.

    Raises:
        ValueError: unknown weight type, or an edited tensor to be written as random blocks.
        OSError: the file cannot be written.
    """
    stored = [storage_type(spec, weight_type) for spec in tensors]
    as_blocks = [fast_blocks and kind in (GgmlType.Q8_0, GgmlType.Q4_0) for kind in stored]
    for spec, fast in zip(tensors, as_blocks, strict=True):
        if fast and spec.edit is not None:
            raise ValueError(f"{spec.name}: an edited tensor cannot be drawn as blocks")
    writer = gguf.GGUFWriter(path, arch)
    _add_metadata(writer, metadata)
    writer.add_uint32("general.file_type", FILE_TYPES[weight_type])
    writer.add_uint32("general.quantization_version", gguf.GGML_QUANT_VERSION)
    for spec, kind in zip(tensors, stored, strict=True):
        n_block, n_byte = gguf.GGML_QUANT_SIZES[kind]
        n_bytes = math.prod(spec.shape) // n_block * n_byte
        float_type = np.dtype(np.float16 if kind == GgmlType.F16 else np.float32)
        writer.add_tensor_info(spec.name, spec.shape, float_type, n_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("ab") as file:
        _pad(file.write, file.tell())
        for spec, kind, fast in zip(tensors, stored, as_blocks, strict=True):
            source = _random_blocks if fast else _values
            for part in source(spec, kind, seed):
                file.write(np.ascontiguousarray(part).data)
            _pad(file.write, file.tell())


def _pad(write: Callable[[bytes], int], position: int) -> None:
    write(b"\0" * (-position % gguf.GGUF_DEFAULT_ALIGNMENT))
