"""What a picture shows: deep greys by their range, animations by their first frame with content."""

import io

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from atp_cpp.images.load import load_image

RAMP = np.linspace(0.0, 1.0, 64).reshape(8, 8)
EIGHT_BITS = np.rint(RAMP * 255)


def tiff(array, tags=None):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for number, value in (tags or {}).items():
        info[number] = value
    out = io.BytesIO()
    Image.fromarray(array).save(out, "TIFF", tiffinfo=info)
    return out.getvalue()


def raw_tiff(array, sample_format):
    """A TIFF of integers that Pillow does not write: signed 16 bits, or unsigned 32."""
    bits = array.dtype.itemsize * 8
    height, width = array.shape
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    entries = [
        (256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 1),
        (273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, sample_format),
    ]  # fmt: skip
    out = b"II*\0" + (8 + len(data)).to_bytes(4, "little") + data
    out += len(entries).to_bytes(2, "little")
    for number, kind, value in entries:
        out += number.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little")
        out += value.to_bytes(4, "little")
    return out + bytes(4)


def shown(data):
    pixels = load_image(data, name="it")
    assert (pixels == pixels[..., :1]).all(), "grey"
    return pixels[..., 0].astype(float)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_sixteen_bits_that_hold_fewer_are_not_black(bits, kind, caplog):
    out = io.BytesIO()
    values = np.rint(RAMP * (2**bits - 1)).astype(np.uint16)
    with caplog.at_level("INFO"):
        Image.fromarray(values).save(out, kind)
        np.testing.assert_allclose(shown(out.getvalue()), EIGHT_BITS, atol=1)
    assert ("is taken for one of" in caplog.text) == (bits < 16)


def test_the_range_that_a_tiff_names_is_its_range():
    """A dark picture of 12 bits stays dark, and without a note."""
    values = np.rint(RAMP * 1000).astype(np.uint16)
    np.testing.assert_allclose(shown(tiff(values, {281: 4095})), RAMP * 1000 / 4095 * 255, atol=1)


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_floats_of_the_usual_ranges(top, caplog):
    with caplog.at_level("INFO"):
        np.testing.assert_allclose(shown(tiff((RAMP * top).astype(np.float32))), EIGHT_BITS, atol=1)
    assert caplog.text == ""


@pytest.mark.parametrize(("low", "high"), [(0, 4095), (0, 1e9), (-1, 1), (-1024, 3071)])
def test_floats_of_other_ranges_are_not_white(low, high, caplog):
    with caplog.at_level("INFO"):
        values = (low + RAMP * (high - low)).astype(np.float32)
        np.testing.assert_allclose(shown(tiff(values)), EIGHT_BITS, atol=1)
    assert "from black to white" in caplog.text


def test_floats_that_are_no_numbers_are_black_and_the_rest_is_seen(caplog):
    values = RAMP.astype(np.float32)
    values[0, 3], values[1, 3], values[2, 3] = np.nan, np.inf, -np.inf
    with caplog.at_level("INFO"):
        out = shown(tiff(values))
    assert "no numbers" in caplog.text
    assert (out[0, 3], out[1, 3], out[2, 3]) == (0, 255, 0)
    np.testing.assert_allclose(out[3:], EIGHT_BITS[3:], atol=1)
    assert (shown(tiff(np.full((4, 4), np.nan, np.float32))) == 0).all()


@pytest.mark.parametrize(("kind", "low", "high"), [
    ("int16", -1024, 3071), ("int32", -70000, 70000), ("uint32", 0, 2**32 - 1), ("int32", 0, 2**20),
])  # fmt: skip
def test_signed_and_long_integers(kind, low, high):
    values = (low + np.rint(RAMP * (high - low))).astype(kind)
    data = raw_tiff(values, 1 if kind.startswith("u") else 2)
    np.testing.assert_allclose(shown(data), EIGHT_BITS, atol=1)


def test_a_picture_of_one_value_is_no_failure():
    for array in (np.zeros((4, 4), np.uint16), np.full((4, 4), 7.5, np.float32)):
        assert shown(tiff(array)).std() == 0


def test_colour_of_sixteen_bits_that_hold_twelve_is_not_black(caplog):
    """Pillow decodes the upper byte of each."""
    import struct
    import zlib

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    rows = b"".join(
        b"\0" + b"".join(struct.pack(">HHH", int(v * 4095), 0, 0) for v in row) for row in RAMP
    )
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    with caplog.at_level("INFO"):
        red = load_image(data)[..., 0].astype(float)
    np.testing.assert_allclose(red, EIGHT_BITS, atol=17)
    assert "brightened" in caplog.text


# ---- animations


def frames(kind, *pictures):
    out = io.BytesIO()
    first, *others = pictures
    options = {"lossless": True} if kind == "WEBP" else {}
    first.save(out, kind, save_all=True, append_images=others, duration=50, disposal=2, **options) \
        if kind != "WEBP" else first.save(
            out, kind, save_all=True, append_images=others, duration=50, **options)  # fmt: skip
    return out.getvalue()


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "GIF"])
@pytest.mark.parametrize("empty", [(0, 0, 0, 0), (0, 0, 0, 255), (255, 255, 255, 255)])
def test_the_first_frame_with_content_is_taken(kind, empty, caplog):
    content = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    content.paste((0, 0, 255, 255), (0, 0, 4, 8))
    blank = Image.new("RGBA", (8, 8), empty)
    with caplog.at_level("INFO"):
        out = load_image(frames(kind, blank, content, content.rotate(90)), name="anim")
    assert (out[:, :4] == (0, 0, 255)).all() and (out[:, 4:] == (255, 0, 0)).all()
    assert "first in anim: frame 2" in caplog.text


def test_an_animation_without_any_content_is_its_first_frame():
    blank = [Image.new("RGBA", (8, 8), (shade, 0, 0, 255)) for shade in (200, 100)]
    assert (load_image(frames("WEBP", *blank)) == (200, 0, 0)).all()


def test_a_frame_that_the_caller_chose_stays():
    content = Image.new("RGB", (8, 8), (255, 0, 0))
    content.paste((0, 0, 255), (0, 0, 4, 8))
    image = Image.open(io.BytesIO(frames("WEBP", content, content.rotate(180), content)))
    image.seek(1)
    assert (load_image(image)[:, 4:] == (0, 0, 255)).all()
    assert image.tell() == 1


# ---- transparency


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_every_mode_with_alpha_lies_over_white(mode):
    base = Image.new("LA" if mode in ("LA", "La") else "RGBA", (8, 8), 0)
    base.paste((0, 255) if base.mode == "LA" else (0, 0, 0, 255), (0, 0, 4, 8))
    image = base.convert("P").convert("PA") if mode == "PA" else base.convert(mode)
    if mode == "PA":
        image = Image.merge("PA", [image.getchannel("P"), base.getchannel("A")])
        image.putpalette([0, 0, 0] * 256)
    out = load_image(image)
    assert (out[:, :4] == 0).all() and (out[:, 4:] == 255).all()


def test_colours_under_an_alpha_that_hides_everything_are_shown(caplog):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 0), (0, 0, 4, 8))
    with caplog.at_level("INFO"):
        assert (load_image(image)[:, :4] == (0, 0, 255)).all()
    assert "wholly transparent" in caplog.text


def test_inverted_cmyk_as_photoshop_writes_it():
    """JPEG of four channels with Adobe's marker: 255 is no ink."""
    out = io.BytesIO()
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(out, "JPEG", quality=95)
    np.testing.assert_allclose(load_image(out.getvalue())[8, 8], (255, 0, 0), atol=6)
