"""Images of every kind a user may bring, and every kind of file that is none."""

import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atp_cpp.errors import ImageError
from atp_cpp.images import MAX_PIXELS, check_size, load_image, source_name

pytest_plugins = ("fixtures_python",)

RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def corner_image(size=(8, 6), mode="RGB"):
    """Blue (or black), with a white pixel block in the upper left corner."""
    image = Image.new("RGB", size, (0, 0, 255)).convert(mode)
    image.paste(Image.new(mode, (3, 2), "white"), (0, 0))
    return image


def message_of(source):
    with pytest.raises(ImageError) as caught:
        load_image(source)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- what comes in


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.bmp", "a.tiff", "a.gif"])
def test_lossless_formats_give_the_pixels(tmp_path, name):
    image = corner_image()
    out = load_image(saved(tmp_path, image, name, **({"lossless": True} if "webp" in name else {})))
    assert out.shape == (6, 8, 3)
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    np.testing.assert_array_equal(out, np.asarray(image))


def test_path_bytes_pillow_and_array_agree(tmp_path, scene):
    expected = np.asarray(Image.open(scene))
    with Image.open(scene) as opened:
        for source in (str(scene), Path(scene), scene.read_bytes(), opened, expected):
            np.testing.assert_array_equal(load_image(source), expected)


def test_array_is_made_contiguous():
    wide = np.zeros((4, 8, 3), np.uint8)[:, ::2]
    assert load_image(wide).flags.c_contiguous


def test_the_users_pillow_image_is_left_alone():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    load_image(image)
    assert image.mode == "RGBA"
    assert image.getpixel((0, 0)) == (255, 0, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif_turn(tmp_path, orientation, suffix):
    upright = Image.new("RGB", (32, 16), (40, 40, 40))
    upright.paste((255, 255, 255), (0, 0, 16, 8))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, stored, "turned" + suffix, exif=exif, quality=95)
    out = load_image(path)
    assert out.shape == (16, 32, 3)
    np.testing.assert_allclose(out.astype(int), np.asarray(upright).astype(int), atol=40)


def test_damaged_exif_costs_nothing(tmp_path):
    path = tmp_path / "bad_exif.jpg"
    corner_image((32, 16)).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert load_image(path).shape == (16, 32, 3)


def test_alpha_lies_over_white_and_is_said(tmp_path, caplog):
    image = Image.new("RGBA", (4, 4), (*RED, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    with caplog.at_level("INFO", "atp_cpp"):
        out = load_image(saved(tmp_path, image, "alpha.png"))
    assert tuple(out[0, 0]) == WHITE
    assert abs(int(out[0, 1, 0]) - 127) <= 1
    assert tuple(out[1, 1]) == RED
    assert "over white" in caplog.text
    assert "alpha.png" in caplog.text


def test_opaque_alpha_is_not_worth_a_note(tmp_path, caplog):
    with caplog.at_level("INFO", "atp_cpp"):
        load_image(saved(tmp_path, Image.new("RGBA", (4, 4), (*RED, 255)), "opaque.png"))
    assert caplog.text == ""


def test_grey_with_alpha(tmp_path):
    image = Image.new("LA", (4, 4), (0, 0))
    assert tuple(load_image(saved(tmp_path, image, "la.png"))[0, 0]) == WHITE


def test_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 2)
    path = saved(tmp_path, image, "palette.png", transparency=2)
    out = load_image(path)
    assert tuple(out[0, 0]) == WHITE
    assert tuple(out[1, 1]) == RED


def test_rgb_with_a_transparent_colour(tmp_path):
    image = Image.new("RGB", (4, 4), RED)
    image.putpixel((0, 0), (0, 0, 255))
    out = load_image(saved(tmp_path, image, "trns.png", transparency=(0, 0, 255)))
    assert tuple(out[0, 0]) == WHITE
    assert tuple(out[1, 1]) == RED


def test_palette_without_transparency(tmp_path):
    path = saved(tmp_path, corner_image().quantize(4), "p.png")
    np.testing.assert_array_equal(load_image(path), np.asarray(corner_image()))


@pytest.mark.parametrize("name", ["cmyk.jpg", "cmyk.tiff"])
def test_cmyk(tmp_path, name):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red ink
    out = load_image(saved(tmp_path, image, name))
    red, green, blue = (int(v) for v in out[8, 8])
    assert red > 200
    assert max(green, blue) < 60


def test_greyscale_and_one_bit(tmp_path):
    grey = load_image(saved(tmp_path, Image.new("L", (4, 4), 100), "l.png"))
    assert tuple(grey[0, 0]) == (100, 100, 100)
    bit = load_image(saved(tmp_path, Image.new("1", (4, 4), 1), "one.png"))
    assert tuple(bit[0, 0]) == WHITE


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    out = load_image(saved(tmp_path, Image.fromarray(values), "deep" + suffix))
    expected = np.rint(values / 257).astype(np.uint8)
    np.testing.assert_allclose(out[..., 0].astype(int), expected.astype(int), atol=1)
    np.testing.assert_array_equal(out[..., 0], out[..., 2])


def test_16_bit_rgb_png(tmp_path):
    # Pillow cannot write one, so by hand: 4x4 pixels, colour type 2, depth 16, all 0x8000 0xffff 0
    row = b"\0" + struct.pack(">HHH", 0x8000, 0xFFFF, 0) * 4
    path = tmp_path / "rgb16.png"
    path.write_bytes(png(4, 4, depth=16, colour=2, data=zlib.compress(row * 4)))
    assert tuple(load_image(path)[0, 0]) == (128, 255, 0)


@pytest.mark.parametrize(("values", "white"), [(np.float32(1.0), 255), (np.float32(255.0), 255)])
def test_float_images(tmp_path, values, white):
    array = np.zeros((4, 4), np.float32)
    array[0, 0] = values
    array[1, 1] = np.nan
    out = load_image(saved(tmp_path, Image.fromarray(array), "f.tiff"))
    assert out[0, 0, 0] == white
    assert out[1, 1, 0] == 0


def test_32_bit_integers_count_as_16(tmp_path):
    array = np.array([[0, 65535], [70000, -5]], np.int32)
    out = load_image(saved(tmp_path, Image.fromarray(array), "i.tiff"))
    assert out[..., 0].tolist() == [[0, 255], [255, 0]]


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "HSV"])
def test_other_colour_spaces_become_rgb(mode):
    assert load_image(Image.new(mode, (4, 4))).shape == (4, 4, 3)


@pytest.mark.parametrize("name", ["anim.gif", "anim.webp", "anim.png"])
def test_first_frame_of_an_animation(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 0, 255))]
    path = saved(
        tmp_path, frames[0], name, save_all=True, append_images=frames[1:], duration=100,
        **({"lossless": True} if "webp" in name else {}),
    )  # fmt: skip
    assert tuple(load_image(path)[4, 4]) == RED


def test_first_page_of_a_tiff(tmp_path):
    pages = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 0, 255))]
    path = saved(tmp_path, pages[0], "pages.tiff", save_all=True, append_images=pages[1:])
    assert tuple(load_image(path)[4, 4]) == RED


def test_heic(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    path = saved(tmp_path, Image.new("RGB", (64, 64), RED), "photo.heic", quality=90)
    np.testing.assert_allclose(load_image(path)[32, 32].astype(int), RED, atol=12)


def test_heic_without_its_plugin(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    path = tmp_path / "photo.heic"
    path.write_bytes(struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(200))
    assert "pip install pillow-heif" in message_of(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_named_pipe(tmp_path, scene):
    import threading

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(scene.read_bytes(),))
    writer.start()
    try:
        assert load_image(pipe).shape == (40, 60, 3)
    finally:
        writer.join()


# ---- what is refused


def png(width, height, *, depth=8, colour=2, data=b""):
    def chunk(kind, body):
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


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


def test_names_in_rows(scene):
    assert source_name(scene) == str(scene)
    assert source_name(b"x") == "<bytes>"
    assert source_name(np.zeros((2, 2, 3), np.uint8)) == "<array>"
    assert source_name(Image.new("RGB", (2, 2))) == "<Pillow image>"
