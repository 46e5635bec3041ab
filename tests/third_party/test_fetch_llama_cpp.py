"""third_party/fetch_llama_cpp.py against small archives made here; no network."""

import hashlib
import importlib.util
import io
import sys
import tarfile
import threading
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "third_party" / "fetch_llama_cpp.py"
spec = importlib.util.spec_from_file_location("fetch_llama_cpp", SCRIPT)
assert spec is not None and spec.loader is not None
fetch = importlib.util.module_from_spec(spec)
sys.modules["fetch_llama_cpp"] = fetch  # dataclasses look their module up
spec.loader.exec_module(fetch)

ROOT = "pkg-1.0/vendor/llama.cpp"
PATCH = """Why this patch is here.

--- a/src/model.cpp
+++ b/src/model.cpp
@@ -1,3 +1,4 @@
 one
-two
+TWO
+two and a half
 three
"""


def write_archive(path, files, links=()):
    """Write a .tar.gz of {member name: content} and (name, target) symbolic links."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)


class Index:
    """Stands in for the package index: hands out one archive and counts the downloads."""

    def __init__(self, folder):
        self.archive = folder / "pkg-1.0.tar.gz"
        self.downloads = 0
        self.serve(
            {
                f"{ROOT}/src/model.cpp": b"one\ntwo\nthree\nfour\n",
                f"{ROOT}/src/deep/a.h": b"// a\n",
                f"{ROOT}/tools/mtmd/clip.cpp": b"// clip\n",
                f"{ROOT}/tools/mtmd/test.mp3": b"big",
                f"{ROOT}/docs/src/readme.md": b"not wanted",
                "pkg-1.0/src/model.cpp": b"outside the root",
            }
        )

    def serve(self, files, links=()):
        write_archive(self.archive, files, links)
        self.pin = fetch.Pin(
            package="pkg",
            version="1.0",
            sha256=hashlib.sha256(self.archive.read_bytes()).hexdigest(),
            root=ROOT,
            wanted=("src", "tools/mtmd/*.cpp"),
        )

    def download(self, pin, into):
        self.downloads += 1
        copy = into / self.archive.name
        copy.write_bytes(self.archive.read_bytes())
        return copy


@pytest.fixture
def index(tmp_path, monkeypatch):
    index = Index(tmp_path)
    monkeypatch.setattr(fetch, "download", index.download)
    return index


@pytest.fixture
def patches(tmp_path):
    folder = tmp_path / "patches"
    folder.mkdir()
    (folder / "0001-two.patch").write_text(PATCH)
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def sources(cache):
    """What the cache holds, lock files left out."""
    return [p for p in cache.glob("*") if p.suffix != ".lock"]


def test_unpacks_the_wanted_part_and_patches_it(index, patches, cache):
    tree = fetch.ensure(index.pin, patches, cache)
    files = {p.relative_to(tree).as_posix() for p in tree.rglob("*") if p.is_file()}
    assert files == {"src/model.cpp", "src/deep/a.h", "tools/mtmd/clip.cpp"}
    assert (tree / "src/model.cpp").read_text() == "one\nTWO\ntwo and a half\nthree\nfour\n"
    assert sources(cache) == [tree]


def test_cache_hit_downloads_nothing(index, patches, cache):
    first = fetch.ensure(index.pin, patches, cache)
    assert fetch.ensure(index.pin, patches, cache) == first
    assert index.downloads == 1


def test_a_changed_patch_is_another_tree(index, patches, cache):
    first = fetch.ensure(index.pin, patches, cache)
    (patches / "0001-two.patch").write_text(PATCH.replace("+TWO", "+2"))
    second = fetch.ensure(index.pin, patches, cache)
    assert second != first
    (patches / "0001-two.patch").write_text("Other words.\n" + PATCH)
    assert fetch.ensure(index.pin, patches, cache) == first
    assert (first / "src/model.cpp").read_text().startswith("one\nTWO\n")
    assert (second / "src/model.cpp").read_text().startswith("one\n2\n")


def test_wrong_checksum_is_refused(index, patches, cache):
    index.archive.write_bytes(index.archive.read_bytes() + b"!")
    with pytest.raises(fetch.FetchError, match="not the pinned file") as error:
        fetch.ensure(index.pin, patches, cache)
    assert index.pin.sha256 in str(error.value)
    assert "ATP_LLAMA_CPP_DIR" in str(error.value)
    assert sources(cache) == []


@pytest.mark.parametrize(
    "name", [f"{ROOT}/src/../../../../evil", "/evil", f"{ROOT}/src/..\\..\\evil"]
)
def test_a_path_that_leads_outside_is_refused(index, patches, cache, name):
    index.serve({f"{ROOT}/src/model.cpp": b"one\ntwo\nthree\n", name: b"evil"})
    with pytest.raises(fetch.FetchError, match="leads outside"):
        fetch.ensure(index.pin, patches, cache)
    assert sources(cache) == []
    assert not list(cache.parent.rglob("*evil*"))


def test_a_link_is_refused(index, patches, cache):
    index.serve({f"{ROOT}/src/model.cpp": b"one\n"}, links=[(f"{ROOT}/src/link", "/etc/passwd")])
    with pytest.raises(fetch.FetchError, match="not a plain file"):
        fetch.ensure(index.pin, patches, cache)
    assert sources(cache) == []


def test_an_archive_without_the_source_is_refused(index, patches, cache):
    index.serve({"pkg-1.0/readme": b""})
    with pytest.raises(fetch.FetchError, match="holds nothing below"):
        fetch.ensure(index.pin, patches, cache)


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (PATCH.replace("-two\n", "-zwei\n"), "0001-two.patch does not fit src/model.cpp: line 2"),
        (PATCH.replace("model.cpp", "gone.cpp"), "0001-two.patch does not fit src/gone.cpp"),
        ("no diff at all\n", "0001-two.patch: no '--- a/"),
    ],
)
def test_a_patch_that_does_not_fit_is_an_error(index, patches, cache, patch, message):
    (patches / "0001-two.patch").write_text(patch)
    with pytest.raises(fetch.FetchError) as error:
        fetch.ensure(index.pin, patches, cache)
    assert message in str(error.value)
    assert sources(cache) == []


def test_two_builds_at_once_download_once(index, patches, cache):
    trees = []
    builds = [
        threading.Thread(target=lambda: trees.append(fetch.ensure(index.pin, patches, cache)))
        for _ in range(4)
    ]
    for build in builds:
        build.start()
    for build in builds:
        build.join()
    assert index.downloads == 1
    assert len(trees) == 4 and len(set(trees)) == 1


def test_failed_download_says_what_pip_said(tmp_path, monkeypatch, patches, cache):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "none"))
    pin = fetch.Pin("no-such-package", "1.0", "0" * 64, ROOT, ("src",))
    with pytest.raises(fetch.FetchError, match="could not download") as error:
        fetch.ensure(pin, patches, cache)
    assert "No matching distribution" in str(error.value)
    assert "ATP_LLAMA_CPP_DIR" in str(error.value)
    assert sources(cache) == []


def test_failure_exits_1_with_nothing_on_stdout(index, patches, cache, monkeypatch, capsys):
    def fail():
        raise fetch.FetchError("the reason")

    monkeypatch.setattr(fetch, "ensure", fail)
    assert fetch.main([]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "fetch_llama_cpp: error: the reason\n"


def test_one_more_file_of_the_archive_can_be_copied_unpatched(index, patches, cache, tmp_path):
    tree = fetch.ensure(index.pin, patches, cache)
    target = tmp_path / "new" / "copy.md"
    fetch.copy_file("docs/src/readme.md", target, index.pin, cache)
    assert target.read_text() == "not wanted"
    fetch.copy_file("src/model.cpp", target, index.pin, cache)
    assert target.read_text() == "one\ntwo\nthree\nfour\n"
    assert (tree / "src/model.cpp").read_text().startswith("one\nTWO\n")
    index.archive.write_bytes(b"damaged")
    fetch.copy_file("src/model.cpp", target, index.pin, cache)
    assert index.downloads == 3, "the archive, and each file, are fetched once"
    with pytest.raises(fetch.FetchError, match="not the pinned file"):
        fetch.copy_file("src/deep/a.h", target, index.pin, cache)


def test_arguments_that_mean_nothing_are_an_error(capsys):
    assert fetch.main(["--help"]) == 1
    assert "expected nothing, or FILE TARGET; got --help" in capsys.readouterr().err


def test_cache_folder_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("ATP_CPP_CACHE", str(tmp_path / "here"))
    assert fetch.cache_dir() == tmp_path / "here"
    monkeypatch.delenv("ATP_CPP_CACHE")
    assert fetch.cache_dir().name == "atp_cpp"


def test_every_patch_opens_with_reason_and_upstream_issue():
    files = fetch.patch_files(fetch.PATCHES)
    assert files
    for patch in files:
        head = patch.read_text("utf-8").split("\n--- a/")[0]
        assert "Reason:" in head
        assert "https://github.com/ggml-org/llama.cpp/" in head
