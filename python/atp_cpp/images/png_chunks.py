"""PNG files without the texts and colour profiles that Pillow refuses to read.

ComfyUI and A1111 write whole workflows into a text chunk. Pillow takes none of more than 1 MiB and
calls the file damaged, though the pixels need none of them.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import BinaryIO

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST = 1 << 20  # bytes of one chunk, inflated: Pillow's limit
_NAMES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


def without_large_texts(stream: BinaryIO) -> BinaryIO:
    """The stream itself, or a copy of a PNG file that lacks the chunks Pillow would refuse.

    Args:
        stream: of any file, at its start; seekable. It is at its start again afterwards.
    """
    dropped = _too_large(stream) if stream.read(8) == _SIGNATURE else []
    stream.seek(0)
    if not dropped:
        return stream
    out = io.BytesIO()
    for start, end in dropped:
        out.write(stream.read(start - stream.tell()))
        stream.seek(end)
    out.write(stream.read())
    stream.seek(0)
    out.seek(0)
    return out


def _too_large(stream: BinaryIO) -> list[tuple[int, int]]:
    """Where such chunks begin and end, in bytes."""
    found = []
    while len(head := stream.read(8)) == 8:
        start = stream.tell() - 8
        length, name = struct.unpack(">I4s", head)
        if name in _NAMES:
            body = stream.read(length)
            if len(body) == length and _size_of(name, body) > _MOST:
                found.append((start, start + length + 12))
        stream.seek(start + length + 12)
    return found


def _size_of(name: bytes, body: bytes) -> int:
    """Bytes of a text or profile; no more than one above the limit is inflated."""
    _, _, rest = body.partition(b"\0")
    if name == b"tEXt":
        return len(rest)
    if name == b"iTXt":
        is_packed, rest = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
        if not is_packed:
            return len(rest)
    else:
        rest = rest[1:]
    try:
        return len(zlib.decompressobj().decompress(rest, _MOST + 1))
    except zlib.error:
        return len(rest)
