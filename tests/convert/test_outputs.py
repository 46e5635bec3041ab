"""The files of a conversion appear together or not at all."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

import atp_cpp
from atp_cpp import ConvertError
from atp_cpp.convert.outputs import Outputs
from atp_cpp.storage.readable import readable_size
from support.checkpoint_files import unprivileged_folder

NAMES = ("tiny-f16.gguf", "mmproj-tiny-f16.gguf", "atp-tiny-f32.gguf")


@pytest.fixture
def paths(tmp_path):
    return [tmp_path / "out" / name for name in NAMES]


def contents(folder):
    """Everything below the folder: path -> content, None for a folder."""
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def write_all(outputs, paths, what):
    for path in paths:
        outputs.part(path).write_text(f"{what} {path.name}")


def convert(paths, what, *, force=False, write=3, then=lambda outputs: None):
    """A conversion that writes so many of the files, and then something happens."""
    with Outputs(paths, force=force) as outputs:
        write_all(outputs, paths[:write], what)
        then(outputs)


def raising(error):
    """A `then` of `convert`."""

    def then(_):
        raise error

    return then


def complete(what):
    return {name: f"{what} {name}" for name in sorted(NAMES)}


def refused(paths, *, force=False):
    with pytest.raises(ConvertError) as caught:
        Outputs(paths, force=force)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_appear_at_the_end(paths, tmp_path):
    outputs = Outputs(paths, force=False)
    outputs.check_space(1)
    assert contents(tmp_path) == {}  # nothing is written yet, not even the folder
    with outputs:
        write_all(outputs, paths, "new")
        assert not any(path.exists() for path in paths)
        for path in paths:
            assert outputs.part(path).parents[1] == path.with_name(path.name + ".part")
            assert outputs.part(path).suffix == ".gguf"
    assert contents(tmp_path / "out") == complete("new")


def test_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "c" / "tiny.gguf"
    convert([path], "x")
    assert path.read_text() == "x tiny.gguf"


def test_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (Path("tiny.gguf"), Path("sub/tiny.gguf")):
        Outputs([path], force=False).check_space(1)
        convert([path], "x")
    assert contents(tmp_path) == {
        "tiny.gguf": "x tiny.gguf",
        "sub": None,
        "sub/tiny.gguf": "x tiny.gguf",
    }


def test_permissions_are_those_of_any_new_file(tmp_path):
    path = tmp_path / "tiny.gguf"
    (tmp_path / "any").write_text("x")
    convert([path], "x")
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode


# ---- what is there already


@pytest.mark.parametrize("there", [0, 1, 2])
def test_a_file_that_is_there_needs_force(paths, there):
    paths[there].parent.mkdir()
    paths[there].write_text("mine")
    message = refused(paths)
    assert f"{paths[there]} is there already; " in message and "--force" in message
    assert contents(paths[0].parent) == {NAMES[there]: "mine"}
    with Outputs(paths, force=True) as outputs:
        write_all(outputs, paths, "new")
        assert paths[there].read_text() == "mine"  # until the end
    assert contents(paths[0].parent) == complete("new")


def test_a_dangling_link_is_there_too(paths, tmp_path):
    paths[0].parent.mkdir()
    paths[0].symlink_to(tmp_path / "elsewhere")
    assert "is there already" in refused(paths)
    convert(paths, "new", force=True)
    assert contents(paths[0].parent) == complete("new")
    assert not paths[0].is_symlink() and not (tmp_path / "elsewhere").exists()


def test_a_folder_is_never_replaced(paths):
    paths[1].mkdir(parents=True)
    assert f"{paths[1]} is a folder; expected a file's name" in refused(paths, force=True)


def test_the_output_folder_is_a_file(tmp_path):
    (tmp_path / "out").write_text("mine")
    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        message = refused([folder / "tiny.gguf"])
        assert f"{tmp_path / 'out'} is no folder; expected one for --outfile-dir" in message


@pytest.mark.skipif(os.name != "posix", reason="no such permissions here")
@pytest.mark.parametrize("mode", [0o500, 0o400, 0o000])
@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_the_output_folder_cannot_be_written(mode, below):
    with unprivileged_folder() as folder:
        folder.chmod(mode)
        message = refused([folder / below / "tiny.gguf"])
        assert str(folder) in message and "cannot be written" in message
        folder.chmod(0o700)
        assert contents(folder) == {}


@pytest.mark.skipif(os.name != "posix", reason="no such permissions here")
def test_the_output_folder_becomes_unwritable():
    with unprivileged_folder() as folder:
        outputs = Outputs([folder / "tiny.gguf"], force=False)
        folder.chmod(0o500)
        with pytest.raises(ConvertError, match=r"tiny.gguf.part: cannot be written: Permission"):
            outputs.__enter__()


def test_a_name_that_no_file_can_have(tmp_path):
    path = tmp_path / f"{'x' * 252}.gguf"
    with pytest.raises(ConvertError, match="cannot be written: File name too long"):
        Outputs([path], force=False).__enter__()
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("paths", [[], ["a", "a"], ["a", "b/a"]])
def test_wrong_use(tmp_path, paths):
    with pytest.raises(ValueError, match="expected different files in one folder"):
        Outputs([tmp_path / path for path in paths], force=True)


def test_anothers_part_file_is_not_touched(paths):
    """A browser's half download has such a name."""
    paths[0].parent.mkdir()
    in_the_way = paths[0].with_name(NAMES[0] + ".part")
    in_the_way.write_text("mine")
    with pytest.raises(ConvertError, match=r"tiny-f16.gguf.part is in the way; move it"):
        Outputs(paths, force=True).__enter__()
    in_the_way.unlink()
    in_the_way.mkdir()
    (in_the_way / "mine").write_text("mine")
    convert(paths, "new")
    kept = {in_the_way.name: None, f"{in_the_way.name}/mine": "mine"}
    assert contents(paths[0].parent) == complete("new") | kept


# ---- space

Usage = namedtuple("Usage", "total used free")


def test_no_space(paths, tmp_path, monkeypatch):
    asked = []

    def disk_usage(folder):
        asked.append(folder)
        return Usage(10**12, 10**12 - 1000, 1000)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    outputs = Outputs(paths, force=False)
    outputs.check_space(1000)
    with pytest.raises(ConvertError) as caught:
        outputs.check_space(13_500_000_000)
    assert "not enough space: expected 13.50 GB, got 1.00 kB free" in str(caught.value)
    assert "--outfile-dir" in str(caught.value)
    assert asked == [tmp_path, tmp_path]  # the nearest folder that is there
    part = paths[0].with_name(NAMES[0] + ".part") / "run-of-old"
    part.mkdir(parents=True)
    (part / NAMES[0]).write_bytes(bytes(500))
    outputs.check_space(1500)  # this run will remove what an earlier one left
    with pytest.raises(ConvertError, match="not enough space"):
        outputs.check_space(1501)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_the_disk_fills_up_while_writing(paths, tmp_path, code):
    with pytest.raises(ConvertError) as caught:
        convert(paths, "half", then=raising(OSError(code, os.strerror(code))))
    assert f"no space for the output ({os.strerror(code)})" in str(caught.value)
    assert contents(tmp_path) == {}


def test_other_system_errors_pass(paths, tmp_path):
    with pytest.raises(FileNotFoundError):
        convert(paths, "half", then=raising(FileNotFoundError(errno.ENOENT, "gone")))
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.00 kB"), (1234567, "1.23 MB"),
     (13_500_000_000, "13.50 GB"), (2 * 10**12, "2.00 TB"), (5 * 10**15, "5000.00 TB")],
)  # fmt: skip
def test_sizes_as_text(n_bytes, text):
    assert readable_size(n_bytes) == text


# ---- ends that are not the end


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, ConvertError])
@pytest.mark.parametrize("written", [0, 1, 3])
def test_an_exception_leaves_nothing(paths, tmp_path, error, written):

    def then(outputs):
        (outputs.part(paths[0]).parent / "scratch").write_text("also goes")
        raise error("stop")

    with pytest.raises(error, match="stop"):
        convert(paths, "half", write=written, then=then)
    assert contents(tmp_path) == {}


def test_an_exception_leaves_what_was_there(paths):
    paths[0].parent.mkdir()
    for path in paths:
        path.write_text(f"old {path.name}")
    with pytest.raises(RuntimeError):
        convert(paths, "half", force=True, then=raising(RuntimeError("stop")))
    assert contents(paths[0].parent) == complete("old")


def test_a_file_that_was_not_written(paths, tmp_path):
    with pytest.raises(ConvertError, match=r"mmproj-tiny-f16\.gguf: cannot be written"):
        convert(paths, "new", write=1)
    assert contents(tmp_path) == {}


def test_a_file_that_appeared_meanwhile(paths):
    with pytest.raises(ConvertError, match="is there already"):
        convert(paths, "new", then=lambda _: paths[2].write_text("mine"))
    assert contents(paths[0].parent) == {NAMES[2]: "mine"}


@pytest.mark.parametrize("old", [(), (0,), (0, 1, 2)])
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_failing_rename_brings_all_back(paths, monkeypatch, old, links, error, fails_at):
    paths[0].parent.mkdir()
    for i in old:
        paths[i].write_text("old")
    real = os.replace

    def replace(source, target):
        if target == paths[fails_at] and Path(source).name != "replaced":
            raise error
        real(source, target)

    def no_link(*_, **__):
        raise OSError(errno.EPERM, "no links here")

    expected = ConvertError if isinstance(error, OSError) else KeyboardInterrupt
    monkeypatch.setattr(os, "replace", replace)
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(expected):
        convert(paths, "new", force=True)
    assert contents(paths[0].parent) == {
        NAMES[i]: "old" for i in sorted(old, key=NAMES.__getitem__)
    }


HOLDS_PARTS = """
import sys, time
from pathlib import Path
from atp_cpp.convert.outputs import Outputs
paths = [Path(p) for p in sys.argv[1:]]
with Outputs(paths, force=False) as outputs:
    outputs.part(paths[0]).write_text("half")
    print(outputs.part(paths[0]), flush=True)
    sys.stdin.readline()
    for path in paths:
        outputs.part(path).write_text(f"first {path.name}")
"""


@pytest.fixture
def other_run(paths):
    """A process in the middle of writing the same files; a line on its stdin lets it go on."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS_PARTS, *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(Path(atp_cpp.__file__).parents[1])},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.part = Path(process.stdout.readline().strip())
    yield process
    process.kill()
    process.communicate()


def test_two_runs_at_once(paths, other_run):
    """Also where they share but one file; the first goes on as if nothing had been."""
    for ours in (paths, [paths[1], paths[0].with_name("tiny-q8_0.gguf")]):
        with pytest.raises(ConvertError, match="is being written by another run; wait for it"):
            Outputs(ours, force=True).__enter__()
    assert other_run.part.read_text() == "half"
    other_run.communicate("go on\n", timeout=60)
    assert other_run.returncode == 0
    assert contents(paths[0].parent) == complete("first")


def test_two_runs_on_different_files(paths, other_run):
    """One folder serves both."""
    ours = paths[0].with_name("other.gguf")
    with Outputs([ours], force=False) as outputs:
        outputs.part(ours).write_text("ours")
    other_run.communicate("go on\n", timeout=60)
    assert contents(paths[0].parent) == complete("first") | {"other.gguf": "ours"}


def test_a_killed_run_is_replaced(paths, other_run):
    other_run.send_signal(signal.SIGKILL)
    other_run.wait(60)
    assert other_run.part.exists() and not any(path.exists() for path in paths)
    with Outputs(paths, force=False) as outputs:
        assert not other_run.part.parent.exists()  # what outlives it cannot write into ours
        write_all(outputs, paths, "second")
    assert contents(paths[0].parent) == complete("second")


def test_a_file_system_without_locks(paths, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(errno.EBADF, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    convert(paths, "new")
    assert contents(paths[0].parent) == complete("new")


def test_the_other_run_ends_while_we_take_its_place(paths, monkeypatch):
    """Its part folder is removed between our opening and our locking it."""
    fcntl = pytest.importorskip("fcntl")
    real, calls = fcntl.flock, []

    def flock(lock, flags):
        real(lock, flags)
        calls.append(lock)
        if len(calls) == 1:
            paths[0].with_name(NAMES[0] + ".part").rmdir()

    monkeypatch.setattr(fcntl, "flock", flock)
    convert(paths, "new")
    assert len(calls) == len(paths) + 1
    assert contents(paths[0].parent) == complete("new")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc here")
def test_no_open_file_is_left(paths):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        convert(paths, "new", force=True)
    assert len(os.listdir("/proc/self/fd")) == before
