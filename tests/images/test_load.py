"""Images of every kind a user may bring, and every kind of file that is none."""

import os
import struct
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atp_cpp.errors import ImageError
from atp_cpp.images import load as images
from atp_cpp.images.load import load_image, source_name
from support.image_files import message_of, png, saved

RED, WHITE = (255, 0, 0), (255, 255, 255)


def corner_image(size=(8, 6), mode="RGB"):
    """Blue (or black), with a white pixel block in the upper left corner."""
    image = Image.new("RGB", size, (0, 0, 255)).convert(mode)
    image.paste(Image.new(mode, (3, 2), "white"), (0, 0))
    return image


# ---- what comes in


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iCCP"])
def test_a_png_with_a_long_text_or_profile_is_a_picture(kind, where):
    """As ComfyUI and A1111 write them; the pixels need none of it."""
    text = b"workflow " * 300_000
    packed = zlib.compress(text)
    body = {
        "tEXt": b"prompt\0" + text * 30,
        "zTXt": b"prompt\0\0" + packed,
        "iTXt": b"prompt\0\1\0en\0\0" + packed,
        "iCCP": b"profile\0\0" + packed,
    }[kind]
    name = kind.encode()
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    data = png(4, 2, data=zlib.compress(b"\0" + bytes([255, 0, 0] * 4) + b"\0" + bytes(12)))
    at = data.index(b"IDAT" if where == "before" else b"IEND") - 4
    out = load_image(data[:at] + chunk + data[at:])
    assert out[0].tolist() == [[255, 0, 0]] * 4 and not out[1].any()


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


def test_32_bit_integers_beyond_16_go_from_the_least_to_the_greatest(tmp_path):
    array = np.array([[0, 65535], [70000, -5]], np.int32)
    out = load_image(saved(tmp_path, Image.fromarray(array), "i.tiff"))
    assert out[..., 0].tolist() == [[0, 239], [255, 0]]


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


def test_names_in_rows(scene):
    assert source_name(scene) == str(scene)
    assert source_name(b"x") == "<bytes>"
    assert source_name(np.zeros((2, 2, 3), np.uint8)) == "<array>"
    assert source_name(Image.new("RGB", (2, 2))) == "<Pillow image>"


def test_a_name_for_messages(scene):
    with pytest.raises(ImageError, match=r"s\.tar/a\.jpg: expected an image"):
        load_image(b"text", name="s.tar/a.jpg")
    with pytest.raises(ImageError, match="frame 3: expected uint8"):
        load_image(np.zeros(3, np.uint8), name="frame 3")
    assert load_image(scene, name="other").shape == (40, 60, 3)


def test_pillow_stays_quiet_in_one_thread_while_another_leaves(scene, monkeypatch):
    """The list of filters is one for all threads; see images._PillowQuiet."""
    first_inside, second_inside = threading.Event(), threading.Event()
    first = threading.Thread(target=load_image, args=(scene,))

    def turned(image):
        if threading.current_thread() is first:
            first_inside.set()
            assert second_inside.wait(60)
        else:
            second_inside.set()
            first.join()
            warnings.warn_explicit("odd", UserWarning, "x.py", 1, module="PIL.Image")
        return image

    monkeypatch.setattr(images, "_turned", turned)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        first.start()
        assert first_inside.wait(60)
        assert load_image(scene).shape == (40, 60, 3)
        assert warnings.filters == before
