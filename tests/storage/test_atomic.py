"""Files that are replaced: the old one or the new one stands there, and nothing else is left."""

import ast
import errno
import os
import stat
from pathlib import Path

import pytest

import atp_cpp
from atp_cpp.storage.atomic import part_of, replacing, to_disk


@pytest.fixture
def target(tmp_path):
    return tmp_path / "target.bin"


def names(target):
    return sorted(os.listdir(target.parent))


def test_the_file_appears_when_it_is_whole(target):
    target.write_bytes(b"old")
    with replacing(target) as part:
        part.write_bytes(b"half")
        assert target.read_bytes() == b"old"
        assert part.parent == target.parent  # a rename there copies nothing
        part.write_bytes(b"new")
    assert target.read_bytes() == b"new"
    assert names(target) == ["target.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit, OSError])
def test_the_old_file_stays_when_the_new_one_fails(target, error):
    def write_half():
        with replacing(target) as part:
            part.write_bytes(b"half")
            raise error

    target.write_bytes(b"old")
    with pytest.raises(error):
        write_half()
    assert target.read_bytes() == b"old"
    assert names(target) == ["target.bin"]


def test_a_part_that_was_never_made(target):
    with pytest.raises(FileNotFoundError), replacing(target):
        pass
    with pytest.raises(KeyError), replacing(target):
        raise KeyError
    assert names(target) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_fails_at_the_end(target, monkeypatch, step):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    target.write_bytes(b"old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="Input/output error"), replacing(target) as part:
        part.write_bytes(b"new")
    assert target.read_bytes() == b"old"
    assert names(target) == ["target.bin"]


def test_an_error_while_cleaning_does_not_hide_the_first_one(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), replacing(tmp_path / "file" / "below") as part:
        part.write_bytes(b"")


def test_the_data_is_on_the_disk_before_the_name(target, monkeypatch):
    steps = []
    for step in ("fsync", "replace"):
        real = getattr(os, step)
        monkeypatch.setattr(os, step, lambda *a, s=step, f=real: steps.append(s) or f(*a))
    with replacing(target) as part:
        part.write_bytes(b"new")
    assert steps == ["fsync", "replace"]
    steps.clear()
    with replacing(target, sync=False) as part:
        part.write_bytes(b"newer")
    assert steps == ["replace"]


def test_two_writers_do_not_meet(target):
    with replacing(target) as first, replacing(target) as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second, and longer")
        assert first.read_bytes() == b"first"
    assert target.read_bytes() == b"first"  # the outer one ended last
    assert names(target) == ["target.bin"]


def test_a_name_that_stays_is_taken_over(target):
    part_of(target).write_bytes(b"what a killed run left, which is long")
    with replacing(target, part=part_of(target)) as part:
        part.write_bytes(b"new")
    assert target.read_bytes() == b"new"
    assert names(target) == ["target.bin"]


def test_names_at_the_limit_and_names_that_are_no_text(tmp_path):
    for name in ("x" * 255, os.fsdecode(b"caf\xe9.txt")):
        target = tmp_path / name
        with replacing(target) as part:
            part.write_bytes(b"new")
        with replacing(target, part=part_of(target)) as part:
            part.write_bytes(b"newer")
        assert target.read_bytes() == b"newer"


def test_files_beside_each_other_have_parts_of_their_own(tmp_path):
    others = [tmp_path / name for name in ("a.txt", "a.pt", "a", "b.txt")]
    assert len({part_of(path) for path in others}) == len(others)
    assert part_of(others[0]) == part_of(others[0])


@pytest.mark.skipif(os.name == "nt", reason="needs the permissions of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_permissions_are_those_of_a_new_file(target, umask, mode):
    before = os.umask(umask)
    try:
        with replacing(target) as part:
            part.write_bytes(b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == mode


def test_a_late_error_of_the_disk_is_raised(target, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    target.write_bytes(b"data")
    to_disk(target)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        to_disk(target)


# ---- one owner

PACKAGE = Path(atp_cpp.__file__).parent
# all or none of several files; a name that the hub's cache prescribes
OTHERS = {"convert/outputs.py", "hub/checkpoint.py"}


def replaces_files(text):
    """Whether a source renames over files: os.replace(a, b), or path.replace(b)."""
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        of_os = isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
        if node.func.attr in ("replace", "rename") and (
            of_os or (len(node.args) == 1 and not node.keywords)
        ):
            return True
    return False


def test_nobody_else_replaces_files():
    ours = (path for path in PACKAGE.rglob("*.py") if "llama_cpp" not in path.parts)
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in ours
        if replaces_files(path.read_text(encoding="utf-8"))
    }
    assert found == {"storage/atomic.py", *OTHERS}


def test_replacing_is_seen_wherever_it_stands():
    for text in ("os.replace(a, b)", "def f():\n    part.replace(path)", "Path(a).rename(b)"):
        assert replaces_files(text)
    for text in ("'a'.replace('a', 'b')", "replace(row, error='')", "dataclasses.replace(a, b=1)"):
        assert not replaces_files(text)
