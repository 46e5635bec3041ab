"""A hash of a checkpoint's weights, written into both of its files: they know each other by it.

Of every tensor goes in its type, shape and first bytes, without name and in no order, so that the
same weights have the same hash in whatever layout they are saved. Of PyTorch's own files, which are
ZIP archives, goes in the checksum of every member.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

from atp_cpp.convert.checkpoint import Checkpoint

_N_BYTES = 256  # of each tensor


def checkpoint_id(checkpoint: Checkpoint) -> str:
    """32 hex digits.

    Raises:
        OSError: a weight file that cannot be read.
    """
    parts = (part for file in checkpoint.files for part in _parts(checkpoint.folder / file))
    return hashlib.sha256(b"".join(sorted(parts))).hexdigest()[:32]


def _parts(path: Path) -> Iterator[bytes]:
    if path.suffix != ".safetensors":
        with zipfile.ZipFile(path) as archive:
            yield from (_digest(f"{m.file_size} {m.CRC:08x}") for m in archive.infolist())
        return
    with path.open("rb") as stream:
        n_header = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(n_header))
        for name, tensor in header.items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                stream.seek(8 + n_header + start)
                data = stream.read(min(end - start, _N_BYTES))
                yield _digest(f"{tensor['dtype']} {tensor['shape']}", data)


def _digest(head: str, data: bytes = b"") -> bytes:
    return hashlib.sha256(head.encode() + b"\0" + data).digest()
