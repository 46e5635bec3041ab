"""The images in folders: which, in what order, and what cannot be looked into."""

import os

import pytest

from atp_cpp.batch.source.folders import (
    holds_any,
    image_suffixes,
    images_in,
    is_image_name,
    is_tar_name,
)


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(root, *, recursive=False):
    return [
        os.path.relpath(one.path, root) if not one.error else one.error
        for one in images_in(str(root), recursive=recursive)
    ]


@pytest.mark.parametrize(
    "suffix", [".jpg", ".jpeg", ".png", ".webp", ".gif", ".tiff", ".bmp", ".mpo"]
)
def test_common_suffixes(suffix):
    assert suffix in image_suffixes()
    assert is_image_name("photo" + suffix)
    assert is_image_name("photo" + suffix.upper())


@pytest.mark.parametrize("name", ["a.txt", "a.pdf", "a.json", "a", "a.eps", "a.mpg", "a.h5", "jpg"])
def test_names_that_are_no_images(name):
    assert not is_image_name(name)


def test_heic_when_pillow_heif_is_there():
    pytest.importorskip("pillow_heif")
    assert is_image_name("photo.heic")


@pytest.mark.parametrize("name", ["a.tar", "b.TAR", "c.tar.gz", "d.tgz"])
def test_names_of_archives(name):
    assert is_tar_name(name)
    assert not is_image_name(name)


def test_images_of_one_folder_sorted(tmp_path):
    touch(tmp_path, "b.jpg", "a.PNG", "c.txt", "A.jpg", "10.jpg", "9.jpg", "inner/d.jpg")
    assert found(tmp_path) == ["10.jpg", "9.jpg", "A.jpg", "a.PNG", "b.jpg"]


def test_recursive_takes_a_folders_images_before_its_folders(tmp_path):
    touch(tmp_path, "z.jpg", "b/2.jpg", "b/1.jpg", "a/x/1.jpg", "a/9.jpg", "empty/no.txt")
    names = ["z.jpg", "a/9.jpg", "a/x/1.jpg", "b/1.jpg", "b/2.jpg"]
    assert found(tmp_path, recursive=True) == names


def test_hidden_files_and_folders_are_left_out(tmp_path):
    touch(tmp_path, ".h.jpg", "._a.jpg", ".cache/b.jpg", "a.jpg")
    assert found(tmp_path, recursive=True) == ["a.jpg"]
    assert found(tmp_path / ".cache") == ["b.jpg"]  # named, so meant


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    touch(tmp_path, "a.jpg/b.jpg")
    assert found(tmp_path) == []
    assert found(tmp_path, recursive=True) == ["a.jpg/b.jpg"]


def test_a_slash_at_the_end_changes_no_name(tmp_path):
    touch(tmp_path, "a.jpg")
    assert list(images_in(f"{tmp_path}//", recursive=False)) == list(
        images_in(str(tmp_path), recursive=False)
    )


def test_links_in_a_circle_end(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "a/self").symlink_to(tmp_path / "a")
    (tmp_path / "b/round").symlink_to("round")  # a link to itself
    (tmp_path / "b/dots").symlink_to("..")
    assert found(tmp_path, recursive=True) == ["a/1.jpg", "b/2.jpg"]


def test_folders_linked_to_each_other_end(tmp_path):
    n = 6
    for i in range(n):
        touch(tmp_path, f"{i}/{i}.jpg")
        for k in range(n):
            (tmp_path / f"{i}/to{k}").symlink_to(tmp_path / str(k))
    names = found(tmp_path, recursive=True)
    assert {os.path.basename(name) for name in names} == {f"{i}.jpg" for i in range(n)}
    assert len(names) <= 2 * n  # each by its own name, and once by a link


def test_linked_folders_and_files_are_followed(tmp_path):
    touch(tmp_path, "store/1.jpg", "store/inner/2.jpg", "set/3.jpg")
    (tmp_path / "set/train").symlink_to(tmp_path / "store")
    (tmp_path / "set/4.jpg").symlink_to(tmp_path / "store/1.jpg")
    names = ["3.jpg", "4.jpg", "train/1.jpg", "train/inner/2.jpg"]
    assert found(tmp_path / "set", recursive=True) == names


def test_broken_links_and_pipes_are_listed_so_that_a_row_tells_of_them(tmp_path):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert found(tmp_path) == ["gone.jpg", "pipe.jpg"]


def refuse(monkeypatch, folder, error):
    scandir = os.scandir

    def refusing(path):
        if os.path.basename(path) == folder:
            raise error
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # chmod does not stop root


def test_a_folder_that_may_not_be_listed_is_an_error_among_the_others(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    refuse(monkeypatch, "b", PermissionError(13, "Permission denied"))
    names = found(tmp_path, recursive=True)
    assert names[0] == "a/1.jpg" and names[2] == "c/3.jpg"
    assert names[1].startswith(f"{tmp_path}/b: no permission to list")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_permission_denied_by_the_system(tmp_path):
    touch(tmp_path, "a/1.jpg")
    (tmp_path / "a").chmod(0)
    assert "no permission to list" in found(tmp_path, recursive=True)[0]
    (tmp_path / "a").chmod(0o700)


def test_a_folder_that_vanished_is_an_error(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    walk = images_in(str(tmp_path), recursive=True)
    assert next(walk).path.endswith("a/1.jpg")
    (tmp_path / "b/2.jpg").unlink()
    (tmp_path / "b").rmdir()
    (last,) = walk
    assert "cannot be listed: No such file" in last.error


def test_a_disk_error_amid_a_folder_keeps_what_was_seen(tmp_path, monkeypatch):
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    scandir = os.scandir

    class Failing:
        def __init__(self, path):
            self.entries = scandir(path)

        def __enter__(self):
            return self

        def __exit__(self, *failure):
            self.entries.close()

        def __iter__(self):
            yield next(self.entries)
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "scandir", Failing)
    names = found(tmp_path)
    assert len(names) == 2
    assert names[1] == f"{tmp_path}: cannot be listed: Input/output error"


def test_names_that_are_no_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb"):
        pass
    (one,) = images_in(str(tmp_path), recursive=False)
    assert os.path.exists(one.path)


@pytest.fixture
def deep(tmp_path, monkeypatch):
    """A folder with 1200 folders in each other; too many for what removes tmp_path."""
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        os.mkdir("d")
        os.chdir("d")
    with open("a.jpg", "wb"):
        pass
    yield tmp_path
    os.unlink("a.jpg")
    for _ in range(1200):
        os.chdir("..")
        os.rmdir("d")


def test_deeper_than_pythons_stack(deep):
    (one,) = images_in(str(deep), recursive=True)
    assert one.path.endswith("d/d/a.jpg")
    assert not one.error


def test_names_are_held_one_folder_at_a_time(tmp_path, monkeypatch):
    touch(tmp_path, *(f"{folder}/{i}.jpg" for folder in "abc" for i in range(3)))
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    walk = images_in(str(tmp_path), recursive=True)
    next(walk)
    assert [os.path.basename(path) for path in listed[1:]] == ["a"]


@pytest.mark.parametrize(
    ("names", "flat", "deep"),
    [
        ([], False, False),
        (["a.txt", ".b.jpg"], False, False),
        (["a.jpg"], True, True),
        (["inner/a.jpg"], False, True),
        (["a.jpg/b.txt"], False, False),
    ],
)
def test_whether_a_folder_holds_any(tmp_path, names, flat, deep):
    touch(tmp_path, *names)
    assert holds_any(str(tmp_path), recursive=False) == flat
    assert holds_any(str(tmp_path), recursive=True) == deep
