"""Texts beside images: whole or not there, and what happens to those that are."""

import errno
import os
from pathlib import Path

import pytest

from atp_cpp.batch.output import text_files
from atp_cpp.batch.output.text_files import EXISTING, TextFileError, TextFiles, text_path
from atp_cpp.errors import AtpError, WriteError


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "cat.jpg"
    path.write_bytes(b"pixels")
    return path


def text_of(image):
    return image.with_suffix(".txt").read_bytes()


def run(image, *captions, existing="skip"):
    """One run over one image."""
    texts = TextFiles(existing)
    if texts.wanted(image):
        texts.write(image, captions)


# ---- one run


@pytest.mark.parametrize(
    ("name", "text"),
    [("cat.jpg", "cat.txt"), ("a.b.JPEG", "a.b.txt"), ("cat", "cat.txt"), (".jpg", ".jpg.txt"),
     ("ü 日本.png", "ü 日本.txt"), ("caf\udce9.jpg", "caf\udce9.txt"),
     ("x/y.z/cat.webp", "x/y.z/cat.txt")],
)  # fmt: skip
def test_names(name, text):
    assert text_path(Path(name)) == Path(text)


@pytest.mark.parametrize("existing", EXISTING)
def test_a_text_is_utf_8_with_a_line_end(image, existing):
    texts = TextFiles(existing)
    assert texts.wanted(str(image))
    texts.write(str(image), ["Un été.\nÀ deux 🦙"])
    assert text_of(image) == "Un été.\nÀ deux 🦙\n".encode()
    assert sorted(os.listdir(image.parent)) == ["cat.jpg", "cat.txt"]


def test_captions_of_several_prompts_are_joined_in_order(image):
    run(image, "A cat.", "Black.")
    assert text_of(image) == b"A cat.\nBlack.\n"


def test_names_as_long_as_names_can_be(tmp_path):
    for n in (255, 251):
        image = tmp_path / ("x" * (n - 4) + ".jpg")
        run(image, "A cat.")
        assert text_of(image) == b"A cat.\n"
    with pytest.raises(TextFileError, match="File name too long"):
        run(tmp_path / ("x" * 254), "A cat.")


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_permissions_are_those_of_a_new_file(image):
    umask = os.umask(0o027)
    try:
        run(image, "A cat.")
    finally:
        os.umask(umask)
    assert image.with_suffix(".txt").stat().st_mode & 0o777 == 0o640


# ---- a text that is there


@pytest.mark.parametrize(
    ("existing", "wanted", "text"),
    [("skip", False, b"Old."), ("overwrite", True, b"New.\n"),
     ("append", True, b"Old.\nNew.\n"), ("prepend", True, b"New.\nOld.\n")],
)  # fmt: skip
def test_a_text_that_is_there(image, existing, wanted, text):
    image.with_suffix(".txt").write_bytes(b"Old.")
    texts = TextFiles(existing)
    assert texts.wanted(image) == wanted
    texts.write(image, ["New."])
    assert text_of(image) == text


@pytest.mark.parametrize("existing", EXISTING)
@pytest.mark.parametrize("old", [None, b"", b"Old.", b"Old.\n", b"Old.\r\n", b"\xef\xbb\xbfOld.\n"])
def test_a_resumed_run_adds_nothing_twice(image, existing, old):
    if old is not None:
        image.with_suffix(".txt").write_bytes(old)
    run(image, "A cat.\nBlack.", "Two.", existing=existing)
    once = text_of(image)
    run(image, "A cat.\nBlack.", "Two.", existing=existing)
    assert text_of(image) == once
    n_times = 0 if existing == "skip" and old is not None else 1
    assert once.count(b"A cat.\nBlack.\nTwo.\n") == n_times


@pytest.mark.parametrize("existing", ["append", "prepend"])
def test_a_caption_that_ends_like_another_is_added(image, existing):
    image.with_suffix(".txt").write_bytes(b"A black cat.\n")
    for caption in ("cat.", "A black", "A black cat"):
        before = text_of(image)
        run(image, caption, existing=existing)
        assert len(text_of(image)) == len(before) + len(caption) + 1


@pytest.mark.parametrize("existing", ["append", "prepend"])
def test_nothing_is_added_to_what_is_no_text(image, existing):
    old = "A cat.".encode("utf-16")
    image.with_suffix(".txt").write_bytes(old)
    with pytest.raises(TextFileError, match=r"cat\.txt: expected UTF-8, so nothing can be added"):
        run(image, "New.", existing=existing)
    assert text_of(image) == old


def test_an_existing_there_is_not():
    with pytest.raises(
        AtpError, match="existing='replace': expected one of skip, overwrite, append"
    ):
        TextFiles("replace")


# ---- images that cannot have a text


@pytest.mark.parametrize("existing", EXISTING)
def test_two_images_of_one_name(image, existing):
    texts = TextFiles(existing)
    assert texts.wanted(image)
    other = image.with_suffix(".png")
    for call in (texts.wanted, lambda path: texts.write(path, ["A dog."])):
        with pytest.raises(
            TextFileError, match=r"cat\.png: .* that of cat\.jpg already; rename one"
        ):
            call(other)
    texts.write(image, ["A cat."])
    assert text_of(image) == b"A cat.\n"
    with pytest.raises(TextFileError):
        texts.wanted(image.parent / "." / "x" / ".." / "cat.png")


def test_two_images_of_one_name_in_a_resumed_run(image):
    run(image, "A cat.")
    texts = TextFiles()
    assert not texts.wanted(image)
    with pytest.raises(TextFileError, match="rename one"):
        texts.wanted(image.with_suffix(".png"))


@pytest.mark.parametrize("existing", EXISTING)
def test_an_image_that_is_named_twice_is_captioned_once(image, existing):
    texts = TextFiles(existing)
    assert [texts.wanted(image) for _ in range(3)] == [True, False, False]


def test_an_image_that_is_called_a_text(tmp_path):
    image = tmp_path / "cat.TXT"
    image.write_bytes(b"pixels")
    with pytest.raises(TextFileError, match="would replace the image itself"):
        run(image, "A cat.", existing="overwrite")
    assert image.read_bytes() == b"pixels"


@pytest.mark.parametrize("image", [b"\xff\xd8", lambda: b"\xff\xd8", object()])
def test_an_image_without_a_file(image):
    for call in (TextFiles().wanted, lambda image: TextFiles().write(image, ["A cat."])):
        with pytest.raises(AtpError, match="has no folder; use --out instead of --txt") as caught:
            call(image)
        assert not isinstance(caught.value, TextFileError)  # it is the whole run's


# ---- files that cannot be written


def test_a_folder_that_cannot_be_written(image, monkeypatch):
    monkeypatch.setattr(os, "access", lambda folder, mode: mode != os.W_OK | os.X_OK)
    with pytest.raises(TextFileError, match=r"cat\.txt: the folder cannot be written; use --out"):
        TextFiles().wanted(image)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_a_file_system_that_cannot_be_written():
    with pytest.raises(TextFileError, match=r"/proc/self/cat\.txt: cannot be written: "):
        TextFiles().write("/proc/self/cat.jpg", ["A cat."])


def test_a_folder_that_is_gone(tmp_path):
    texts, image = TextFiles(), tmp_path / "gone" / "cat.jpg"
    assert texts.wanted(image)  # the image says what is wrong
    with pytest.raises(TextFileError, match="No such file"):
        texts.write(image, ["A cat."])


def test_a_folder_in_the_place_of_a_text(image):
    image.with_suffix(".txt").mkdir()
    for existing in ("overwrite", "append", "prepend"):
        with pytest.raises(TextFileError, match="Is a directory"):
            run(image, "A cat.", existing=existing)
    assert sorted(os.listdir(image.parent)) == ["cat.jpg", "cat.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("existing", ["overwrite", "append", "prepend"])
def test_a_full_disk_ends_the_run_and_keeps_the_old_text(image, monkeypatch, number, existing):
    image.with_suffix(".txt").write_bytes(b"Old.\n")

    def fsync(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(text_files.os, "fsync", fsync)
    with pytest.raises(WriteError, match=r"cat\.txt: cannot be written: .*make room and run"):
        run(image, "New.", existing=existing)
    assert text_of(image) == b"Old.\n"
    assert sorted(os.listdir(image.parent)) == ["cat.jpg", "cat.txt"]


def test_a_text_is_never_seen_half_written(image, monkeypatch):
    seen = []
    real = os.replace

    def replace(part, text):
        seen.append((Path(part).read_bytes(), text.exists()))
        real(part, text)

    monkeypatch.setattr(text_files.os, "replace", replace)
    run(image, "A cat.")
    assert seen == [(b"A cat.\n", False)]


def test_what_a_killed_run_left_is_taken_over(image, monkeypatch):
    def killed(*_):
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(text_files.os, "replace", killed)
        patched.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(SystemExit):
            run(image, "A very long caption of a cat.")
    assert len(os.listdir(image.parent)) == 2
    run(image, "A cat.")
    assert sorted(os.listdir(image.parent)) == ["cat.jpg", "cat.txt"]
    assert text_of(image) == b"A cat.\n"
