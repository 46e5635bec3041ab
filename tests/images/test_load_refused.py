"""Files, arrays and things that are no image: one clear line each, and nothing worse."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atp_cpp.errors import ImageError
from atp_cpp.images.load import MAX_PIXELS, check_size, load_image
from support.image_files import message_of, png, saved

RED = (255, 0, 0)


def test_missing_file(tmp_path):
    assert message_of(tmp_path / "none.png") == f"{tmp_path}/none.png: no such file; check the path"


def test_directory(tmp_path):
    assert "got a directory" in message_of(tmp_path)


def test_permission_denied(scene, monkeypatch):
    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)  # chmod does not stop root
    assert "no permission" in message_of(scene)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_permission_denied_by_the_system(scene):
    scene.chmod(0)
    assert "no permission" in message_of(scene)


def test_empty_file_and_empty_bytes(tmp_path):
    path = tmp_path / "empty.jpg"
    path.touch()
    assert "0 bytes" in message_of(path)
    assert "0 bytes" in message_of(b"")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"%PDF-1.7\n" + bytes(100), "PDF"),
        (b"hello, this is a text file\n", "text file"),
        (b"", "0 bytes"),
        (b"GGUF" + bytes(60), "GGUF model"),
        (b"PK\x03\x04" + bytes(60), "ZIP"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\n <html>", "HTML"),
        (b"<?xml version='1.0'?><svg/>", "SVG"),
        (b"\0\0\0\x18ftypisom" + bytes(60), "video"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (bytes(range(128, 192)), "unknown kind"),
        (b"\xff\xd8\xff", "cut off or damaged"),
        (b"\x89PNG\r\n", "cut off or damaged"),
    ],
)
def test_files_that_are_no_image(tmp_path, content, says):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    message = message_of(path)
    assert says in message
    assert "expected an image" in message
    assert str(path) in message


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.webp", "cut.gif", "cut.tiff"])
def test_truncated_file(tmp_path, name, pixels):
    whole = saved(tmp_path, Image.fromarray(pixels), name)
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    message = message_of(whole)
    assert "damaged" in message or "cut off" in message
    assert name in message


def test_every_cut_of_a_jpeg_fails_or_gives_pixels(tmp_path, pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    data = stream.getvalue()
    for end in range(1, len(data) - 2, max(1, len(data) // 60)):
        message_of(data[:end])


def test_flipped_bytes_never_raise_anything_else(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    clean = stream.getvalue()
    rng = np.random.default_rng(3)
    for _ in range(100):
        data = bytearray(clean)
        for at in rng.integers(0, len(data), 4):
            data[at] ^= int(rng.integers(1, 256))
        try:
            out = load_image(bytes(data))
        except ImageError:
            continue
        assert out.dtype == np.uint8


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_one_pixel(tmp_path, size):
    message = message_of(saved(tmp_path, Image.new("RGB", size), "dot.png"))
    assert f"got {size[0]}x{size[1]}" in message
    assert "at least 2 pixels" in message


def test_two_pixels_are_enough(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (2, 2), RED), "two.png")
    assert load_image(path).shape == (2, 2, 3)


@pytest.mark.parametrize("side", [10_000, 12_000, 30_000])
def test_huge_image_is_refused_by_its_header(tmp_path, side):
    path = tmp_path / "huge.png"
    path.write_bytes(png(side, side, data=b"not a zlib stream"))  # decoding it would fail otherwise
    message = message_of(path)
    assert "megapixels" in message
    assert "scale it down" in message


def test_the_size_limit_itself():
    check_size("x", MAX_PIXELS // 8000, 8000)
    with pytest.raises(ImageError, match="megapixels"):
        check_size("x", MAX_PIXELS // 8000 + 1, 8000)


def test_extreme_shape(tmp_path):
    assert load_image(saved(tmp_path, Image.new("RGB", (400, 2)), "ok.png")).shape == (2, 400, 3)
    message = message_of(saved(tmp_path, Image.new("RGB", (402, 2)), "strip.png"))
    assert "402x2" in message
    assert "200:1" in message


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 1, 3), np.uint8),
    ],
)
def test_arrays_of_another_shape(array):
    assert "<array>" in message_of(array)


@pytest.mark.parametrize("source", [None, 7, [1, 2]])
def test_things_that_are_no_source(source):
    assert type(source).__name__ in message_of(source)


def test_web_address_and_impossible_names():
    assert "download it" in message_of("https://example.org/cat.jpg")
    assert "embedded null" in message_of("a\0b.png")
    assert "cannot be read" in message_of("x" * 5000)
    assert "empty name" in message_of("")


S3 = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>'
SVG = b'<?xml version="1.0"?><!-- drawn --><!DOCTYPE svg PUBLIC "x" "y">\n<svg width="4"></svg>'


@pytest.mark.parametrize(("data", "what"), [
    (S3, "an error page of a file store"), (SVG, "an SVG drawing"), (b"<?xml?><a/>", "an XML file"),
    (b"\xff\x0a" + bytes(40), "JPEG XL"), (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL"),
    (b"\0\0\0\x18ftypcrx " + bytes(40), "camera's raw"), (b"FUJIFILMCCD-RAW 0201", "camera's raw"),
    (b"II*\0\x10\0\0\0CR\x02\0" + bytes(40), "camera's raw"),
    (b"\x1aE\xdf\xa3" + bytes(40), "a video"), (b"RIFF\x10\0\0\0AVI LIST" + bytes(9), "a video"),
])  # fmt: skip
def test_files_are_called_what_they_are(data, what):
    message = message_of(data)
    assert what in message and ";" in message
    assert ("SVG" in message) == (data is SVG)


def test_vector_drawings_start_no_other_program(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (20, 20), RED), "drawing.eps")
    message = message_of(path)  # newer releases of Pillow do not even recognise it
    assert "vector drawing (EPS)" in message or "PostScript" in message
    path.write_bytes(b"%!PS-Adobe-3.0\nshowpage\n")
    assert "PostScript" in message_of(path)


def test_device_files():
    if not Path("/dev/zero").exists():
        pytest.skip("no device files here")
    assert "regular file" in message_of("/dev/zero")
