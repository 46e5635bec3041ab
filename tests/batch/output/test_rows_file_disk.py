"""The file of rows on disks that are full or fail: nothing torn stays, and a later run goes on."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from atp_cpp.batch.output.rows_file import RowsFile
from atp_cpp.errors import WriteError
from support import rows_writer
from support.made_rows import CONFIG, lines, made_row
from support.rows_writer import program

KEY = ("a.jpg", "What?", CONFIG)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_that_is_full():
    with (
        RowsFile("/dev/full") as rows,
        pytest.raises(WriteError, match="/dev/full: cannot be written any further: No space left"),
    ):
        rows.append(made_row())


@pytest.mark.parametrize("n_bytes", range(0, 400, 40))
def test_a_write_that_fails_half_way_leaves_nothing(path, monkeypatch, n_bytes):
    real = os.write

    def write(descriptor, data):
        if len(data) < len(made_row().as_line()) or n_bytes == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:n_bytes])

    with RowsFile(path) as rows:
        rows.append(made_row("0.jpg"))
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", write)
            with pytest.raises(WriteError, match=r"the 1 rows of this run are whole; make room"):
                rows.append(made_row())
        assert lines(path) == [made_row("0.jpg").as_line()]
        rows.append(made_row())  # room was made
    assert lines(path) == [made_row("0.jpg").as_line(), made_row().as_line()]


def test_an_interruption_half_way_leaves_nothing(path, monkeypatch):
    real = os.write

    def write(descriptor, data):
        if len(data) < len(made_row().as_line()):
            raise KeyboardInterrupt
        return real(descriptor, data[:50])

    with RowsFile(path) as rows:
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(KeyboardInterrupt):
            rows.append(made_row())
    assert lines(path) == []


def whole_and_resumed(path, ran):
    """What a full disk left is whole, and a run with room makes it complete."""
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"WriteError: {path}: cannot be written any further: ")
    rows = lines(path)
    assert f"the {len(rows)} rows of this run are whole; make room" in ran.stdout
    assert 10 < len(rows) < 150 and all(row.endswith(b"}\n") for row in rows)
    rows_writer.run(path, path.parent, 100)
    assert lines(path)[: len(rows)] == rows
    assert len(set(lines(path))) == len(lines(path)) == 150


@pytest.mark.skipif(os.name == "nt", reason="needs limits to the size of files")
def test_a_limit_to_the_size_of_files(path):
    ran = program(path, 100, limit=20_000)
    assert path.stat().st_size <= 20_000
    whole_and_resumed(path, ran)


def test_a_disk_that_is_full(tmp_path):
    """A file system of 32 KiB in a mount namespace of its own; the file is copied out of it."""
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    mount = f"mount -t tmpfs -o size=32k tmpfs {disk}"
    try:
        subprocess.run(["unshare", "-rm", "sh", "-c", mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    copy = f'{mount} && "$@" && cp {disk}/rows.jsonl {out}'
    path = disk / "rows.jsonl"
    ran = program(path, 100, prefix=("unshare", "-rm", "sh", "-c", copy, "sh"))
    assert "No space left on device" in ran.stdout, ran.stderr
    path.write_bytes((out / "rows.jsonl").read_bytes())
    whole_and_resumed(path, ran)


def test_a_disk_that_fails_when_rows_shall_reach_it(path, monkeypatch):
    def fsync(_):
        raise OSError(errno.EIO, "Input/output error")

    rows = RowsFile(path).__enter__()
    rows.append(made_row())
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(WriteError, match="Input/output error"):
        rows.__exit__(None, None, None)
    with RowsFile(path) as again:  # the lock is free
        monkeypatch.undo()
        assert again.done(*KEY)


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_disk(path, monkeypatch):
    def fsync(_):
        raise OSError(errno.EIO, "Input/output error")

    rows = RowsFile(path).__enter__()
    monkeypatch.setattr(os, "fsync", fsync)
    rows.__exit__(KeyError, KeyError(), None)  # nothing of its own


def test_a_file_that_is_moved_away_while_it_is_written(path, tmp_path):
    rows = RowsFile(path).__enter__()
    rows.append(made_row())
    path.rename(tmp_path / "elsewhere.jsonl")
    with pytest.raises(WriteError, match=r"rows\.jsonl was moved or removed while it was being"):
        rows.__exit__(None, None, None)
    assert lines(tmp_path / "elsewhere.jsonl") == [made_row().as_line()]
