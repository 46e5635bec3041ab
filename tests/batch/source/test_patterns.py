"""Patterns match what a shell with globstar would, each path once, in order."""

import glob
import itertools
import os

import pytest

from atp_cpp.batch.source.patterns import files_matching, is_pattern

TREE = [
    "a.jpg", "b.png", "c.txt", ".hidden.jpg", "[x].jpg", "a b.jpg",
    "one/a.jpg", "one/b.jpg", "one/.dot/a.jpg", "one/one/a.jpg", "one/two/c.jpg",
    "two/a.jpg", "two/one/b.jpg", "two/one/two/d.jpg", "two/x1.jpg", "two/x2.jpg", "two/x10.jpg",
]  # fmt: skip
PATTERNS = [
    "*", "*.jpg", "?.jpg", "[ab].*", "[!a]*", "*/*.jpg", "*/a.jpg", "one/*", "**", "**/*.jpg",
    "**/one/*.jpg", "one/**/a.jpg", "**/one/**", "**/**/*.jpg", "**/one/**/two/**/*.jpg",
    "two/x?.jpg", "two/x[0-9].jpg", "*/*/*.jpg", ".*.jpg", "one/.*/*", "no/*.jpg", "*.gif",
    "*/one/b.jpg", "[[]x].jpg", "**/.dot/*.jpg", "tw[o]//a.jpg", "**/two/*",
]  # fmt: skip


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in TREE:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_same_files_as_pythons_glob(tree, pattern):
    ours = [found.path for found in files_matching(pattern)]
    # glob gives a path as often as it finds it, and keeps doubled slashes
    theirs = {os.path.normpath(p) for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)}
    assert sorted(ours) == sorted(theirs)


@pytest.mark.parametrize("pattern", ["**/*.jpg", "*.jpg", "*/*.jpg"])
def test_order_is_a_folders_files_and_then_its_folders(tree, pattern):
    ours = [found.path for found in files_matching(pattern)]
    for _, files in itertools.groupby(ours, os.path.dirname):
        names = list(files)
        assert names == sorted(names)
    folders = [folder for folder, _ in itertools.groupby(ours, os.path.dirname)]
    assert len(folders) == len(set(folders))  # each folder in one go
    assert folders == sorted(folders)


def test_an_absolute_pattern_gives_absolute_paths(tree):
    (found,) = files_matching(f"{tree}/one/t*/c.jpg")
    assert found.path == f"{tree}/one/two/c.jpg"


def test_a_pattern_from_the_root(tree):
    assert any(found.path == "/etc/passwd" for found in files_matching("/etc/pass*"))


def test_up_and_down(tree, monkeypatch):
    monkeypatch.chdir(tree / "one")
    assert [found.path for found in files_matching("../two/a.*")] == ["../two/a.jpg"]


def test_two_stars_enter_no_links(tree):
    (tree / "one/up").symlink_to(tree)
    (tree / "two/x3.jpg").symlink_to(tree / "a.jpg")
    paths = [found.path for found in files_matching("**/*.jpg")]
    assert not any("up" in path for path in paths)
    assert "two/x3.jpg" in paths
    assert "one/up/a.jpg" in [found.path for found in files_matching("one/*/a.jpg")]


def test_a_folder_that_may_not_be_listed_is_an_error_among_the_files(tree, monkeypatch):
    scandir = os.scandir

    def refusing(path):
        if path == "one":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = list(files_matching("*/a.jpg"))
    assert [one.path for one in found] == ["one", "two/a.jpg"]
    assert "no permission to list" in found[0].error
    assert not found[1].error


def test_the_work_does_not_grow_with_the_number_of_stars(tmp_path, monkeypatch):
    deep = tmp_path
    for _ in range(12):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "a.jpg").touch()
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    pattern = str(tmp_path) + "/**/d" * 6 + "/**/*.jpg"
    assert len(list(files_matching(pattern))) == 1
    assert len(listed) == 13


@pytest.mark.parametrize(
    ("text", "is_one"), [("a*", True), ("a?b", True), ("[a]", True), ("a]", False)]
)
def test_what_a_pattern_is(text, is_one):
    assert is_pattern(text) == is_one
