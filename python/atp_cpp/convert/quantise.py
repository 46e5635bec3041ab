"""Quantising a text model by llama.cpp's own quantiser, and the exact size of what comes out.

llama.cpp cannot be stopped while it quantises, and it reports no progress. So the caller runs
:func:`quantise` in a process that can be ended, and watches the file grow to the computed size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from atp_cpp import _core
from atp_cpp.errors import ConvertError, ModelError

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["QUANTISED", "hollow", "quantise", "quantised_size"]

QUANTISED = ("q4_k_m",)  # what gguf-py cannot write; the other types it writes bit for bit the same


def quantised_size(source: Path, type: str) -> int:
    """Bytes of the file that :func:`quantise` would write, by llama.cpp's rules; writes nothing.

    Args:
        source: a text model in f32, f16 or bf16. Its weights are not read.
        type: one of ``_core.quantise_types()``.

    Raises:
        ModelError: it cannot be quantised.
    """
    return _core.quantised_size(str(source), type)


@contextmanager
def hollow(writer: GGUFWriter, n_bytes: int) -> Iterator[Path]:
    """Makes a file that has only its header and its keys look whole while the context is open.

    Its tensors' names and shapes are appended, and a hole (which takes no space on most file
    systems) in the place of their data, so that llama.cpp can be asked about it.

    Args:
        writer: of one file; has written its keys, and will write its tensors later.
        n_bytes: what the whole file will have.

    Raises:
        OSError: the hole takes space, and there is none.
    """
    from gguf.gguf_writer import WriterState

    assert writer.fout is not None
    (file,) = writer.fout
    file.flush()
    end = file.tell()
    try:
        writer.write_ti_data_to_file()
        file.truncate(n_bytes)
        yield Path(file.name)
    finally:
        writer.state = WriterState.KV_DATA
        file.seek(end)
        file.truncate()


def quantise(source: Path, target: Path, type: str) -> None:
    """Writes a text model once more in another type, on all cores; returns when it is whole.

    Args:
        source: a text model in f32, f16 or bf16; stays.
        target: the file to write, replaced if it is there.
        type: one of ``_core.quantise_types()``.

    Raises:
        ConvertError: the model cannot be quantised or written; no target is left. The message names
            the files without their folders, because the user did not choose these folders.
    """
    try:
        _core.quantise(str(source), str(target), type)
    except ModelError as error:
        message = str(error).replace(str(source), source.name).replace(str(target), target.name)
        raise ConvertError(message) from error
