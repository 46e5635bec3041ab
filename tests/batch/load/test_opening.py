"""One image opened: hash, pixels, and one line for all that can be wrong with it."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atp_cpp.batch.load import opening
from atp_cpp.batch.load.memory import Memory, Stopped
from atp_cpp.batch.load.opening import Opener, bytes_of, own_pixels, size_of
from atp_cpp.batch.source.item import Item
from atp_cpp.errors import ImageError
from atp_cpp.images.load import load_image
from support.image_files import png, saved


def opened(source, *, name="x.jpg", prepare=lambda pixels: pixels, memory=None, error=""):
    item = Item("id", name, source, ("What?",), error)
    made = Opener(lambda _, pixels: prepare(pixels), memory or Memory(1 << 30))
    return made.open(0, item, source)


def failure(source, **options):
    loaded = opened(source, **options)
    assert loaded.pixels is None
    assert loaded.error and "\n" not in loaded.error
    assert "x.jpg" in loaded.error
    return loaded.error


def jpeg(pixels, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


# ---- what is opened


def test_path_bytes_and_callable_agree(scene):
    data = scene.read_bytes()
    for source in (str(scene), Path(scene), data, lambda: data):
        loaded = opened(source)
        np.testing.assert_array_equal(loaded.pixels, load_image(scene))
        assert loaded.sha256 == hashlib.sha256(data).hexdigest()
        assert loaded.error == ""
        assert loaded.t_load > 0
        assert loaded.item.custom_id == "id"


def test_pixels_in_memory(pixels):
    loaded, other = opened(pixels), opened(np.ascontiguousarray(pixels.reshape(60, 40, 3)))
    np.testing.assert_array_equal(loaded.pixels, pixels)
    assert loaded.sha256 == hashlib.sha256(b"40x60:" + pixels.tobytes()).hexdigest()
    assert other.sha256 != loaded.sha256  # the same bytes in another shape
    assert opened(Image.fromarray(pixels)).sha256 == loaded.sha256


def test_what_prepare_makes(scene):
    assert opened(scene, prepare=lambda pixels: pixels.shape).pixels == (40, 60, 3)


def test_a_file_is_read_once(scene, monkeypatch):
    reads = []
    open_file = opening.open_file

    def watched(*args, **options):
        reads.append(args)
        return open_file(*args, **options)

    monkeypatch.setattr(opening, "open_file", watched)
    assert opened(scene).pixels is not None
    assert len(reads) == 1


@pytest.mark.parametrize("mode", ["CMYK", "P", "L", "1", "LAB", "YCbCr", "I;16"])
def test_unusual_modes(tmp_path, mode):
    suffix = {"CMYK": "jpg", "YCbCr": "jpg", "LAB": "tiff"}.get(mode, "png")
    image = Image.new("RGB", (8, 6), "red")
    odd = Image.new("I;16", (8, 6), 999) if mode == "I;16" else image.convert("RGB")
    if mode not in ("I;16", "LAB"):
        odd = image.convert(mode)
    if mode == "LAB":
        odd = Image.new("LAB", (8, 6))
    assert opened(saved(tmp_path, odd, f"a.{suffix}")).pixels.shape == (6, 8, 3)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_the_first_picture_of_several(tmp_path, suffix):
    first, second = (Image.new("RGB", (8, 6), color) for color in ("red", "blue"))
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path, first, f"a.{suffix}", save_all=True, append_images=[second], **options)
    assert opened(path).pixels[0, 0].tolist() == [255, 0, 0]


# ---- what is not


def test_known_errors_are_not_opened():
    def never():
        raise AssertionError

    loaded = opened(never, error="line 3: no JSON")
    assert (loaded.error, loaded.sha256, loaded.pixels) == ("line 3: no JSON", "", None)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_cut_jpeg_has_a_hash_and_an_error(pixels, part):
    data = jpeg(pixels)
    data = data[: int(len(data) * part)]
    loaded = opened(data)
    assert "damaged" in loaded.error or "cut off" in loaded.error
    assert loaded.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 bytes"),
        (b"%PDF-1.7\n" + bytes(100), "got a PDF"),
        (png(30_000, 30_000, data=b"no zlib stream"), "megapixels"),
        (png(1, 1), "at least 2 pixels"),
        (b"plain text", "text file"),
    ],
)
@pytest.mark.parametrize("as_file", [True, False])
def test_files_that_are_no_image(tmp_path, content, says, as_file):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    assert says in failure(path if as_file else content)


def test_a_huge_picture_takes_no_memory_before_it_is_refused():
    class Spy(Memory):
        most = 0

        def take(self, index, n_bytes):
            Spy.most = max(Spy.most, n_bytes)
            return super().take(index, n_bytes)

    data = png(30_000, 30_000, data=b"x")
    assert "megapixels" in failure(data, memory=Spy(1 << 30))
    assert Spy.most == len(data)


def test_a_file_that_vanished(tmp_path):
    assert failure(tmp_path / "x.jpg") == "x.jpg: no such file; check the path"


def test_permission_denied(scene, monkeypatch):
    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)  # chmod does not stop root
    assert "no permission" in failure(scene)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_permission_denied_by_the_system(scene):
    scene.chmod(0)
    assert "no permission" in failure(scene)


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    assert "pipe, device or socket" in failure(tmp_path / "x.jpg")  # opening it would hang
    assert "pipe, device or socket" in failure("/dev/zero")


def test_a_folder(tmp_path):
    assert "got a directory" in failure(tmp_path)


@pytest.mark.parametrize("name", ["a\0b.jpg", "\ud800.jpg", "x" * 5000])
def test_names_that_no_file_has(name):
    assert failure(name)


def test_an_empty_name():
    assert "got an empty name" in opened("").error


def test_a_web_address():
    assert "download it first" in failure("https://x.org/x.jpg")


def test_a_file_that_is_too_large(tmp_path, scene, monkeypatch):
    monkeypatch.setattr(opening, "MAX_FILE_BYTES", scene.stat().st_size)
    assert opened(scene).error == ""
    monkeypatch.setattr(opening, "MAX_FILE_BYTES", scene.stat().st_size - 1)
    assert "expected at most" in failure(scene)


def test_a_disk_error_while_reading(scene, monkeypatch):
    class Failing(io.FileIO):
        def read(self, *args):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(opening, "open_file", lambda *args, **options: Failing(scene))
    assert failure(scene) == "x.jpg: cannot be read: Input/output error"


class RustPanic(BaseException):
    pass


def recurse():
    return recurse()


def raising(error):
    def run(*args):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "out of memory"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (ValueError("a\nb"), "ValueError: a b"),
        (RustPanic("index out of range"), "RustPanic: index out of range"),
        (KeyError("k"), "KeyError: 'k'"),
        (ImageError("x.jpg: said so"), "x.jpg: said so"),
        (Exception("x" * 10_000), "Exception: xxx"),
    ],
)
@pytest.mark.parametrize("where", ["source", "prepare"])
def test_whatever_is_raised_is_the_images_error(scene, error, says, where):
    fails = raising(error)
    text = failure(fails) if where == "source" else failure(scene, prepare=fails)
    assert says in text
    assert len(text) <= 1000


def test_too_deep_a_recursion():
    assert "RecursionError" in failure(recurse)


def test_a_callable_that_gives_no_bytes():
    assert "expected the bytes of an image, got NoneType" in failure(lambda: None)
    assert "got str" in failure(lambda: "path.jpg")


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stopped])
def test_ending_the_run_is_no_images_error(error):
    with pytest.raises(error):
        opened(raising(error()))


def test_memory_is_given_back_with_an_error(scene):
    memory = Memory(1)
    opened(scene, prepare=raising(ValueError()), memory=memory)
    assert not memory.is_full


def test_what_stays_in_memory_is_what_prepare_made(scene):
    memory = Memory(100)
    opened(scene, prepare=lambda pixels: np.zeros(99, np.uint8), memory=memory)
    assert not memory.is_full
    opened(scene, prepare=lambda pixels: np.zeros(100, np.uint8), memory=memory)
    assert memory.is_full


def test_after_a_large_picture_its_memory_goes_back_to_the_system(scene, monkeypatch):
    calls = []
    monkeypatch.setattr(opening, "give_back", lambda: calls.append(1))
    opened(scene)
    assert not calls
    monkeypatch.setattr(opening, "_LARGE", 20 * 40 * 60)
    opened(scene)
    assert len(calls) == 1


# ---- parts


def test_own_pixels_are_a_copy(pixels):
    copy = own_pixels(Item("", "x", pixels, ()))
    before = pixels.copy()
    pixels[:] = 0
    np.testing.assert_array_equal(copy, before)
    image = Image.fromarray(before)
    copy = own_pixels(Item("", "x", image, ()))
    image.paste((0, 0, 0), (0, 0, 60, 40))
    np.testing.assert_array_equal(copy, before)


def test_of_files_nothing_is_copied():
    for source in ("a.jpg", b"x", Path("a"), recurse):
        assert own_pixels(Item("", "x", source, ())) is source


def test_pixels_that_are_refused():
    with pytest.raises(ImageError, match="x: expected uint8"):
        own_pixels(Item("", "x", np.zeros((4, 4)), ()))
    bad = np.zeros((4, 4))
    assert own_pixels(Item("", "x", bad, (), "known")) is bad


def test_sizes(scene, pixels):
    assert size_of(b"abc") == 3
    assert size_of(pixels) == 40 * 60 * 3
    assert size_of(scene) == scene.stat().st_size
    assert size_of("none.jpg") == size_of("a\0b") == size_of(recurse) == 0


def test_bytes_of_something_else():
    with pytest.raises(ImageError, match="got int"):
        bytes_of(3, "x")
