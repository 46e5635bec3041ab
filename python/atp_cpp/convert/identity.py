"""A hash of a checkpoint's weights. Both converted files hold it, which shows that they match.

The hash contains the type, the shape and the first bytes of every tensor, without names and without
an order. So the same weights have the same hash in every layout. For PyTorch's own files, which are
ZIP archives, the hash contains the checksum of every member.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

from atp_cpp.convert.checkpoint import Checkpoint

_N_BYTES = 256  # bytes of each tensor that are hashed


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
