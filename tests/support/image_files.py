"""Image files that tests make, and the message of an image that is refused."""

import struct
import zlib

import pytest

from atp_cpp.errors import ImageError
from atp_cpp.images.load import load_image


def saved(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def message_of(source):
    with pytest.raises(ImageError) as caught:
        load_image(source)
    text = str(caught.value)
    assert "\n" not in text
    return text


def png(width, height, *, depth=8, colour=2, data=b""):
    def chunk(kind, body):
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
