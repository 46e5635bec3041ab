"""The file of rows: whole lines only, one writer, and what is found there is gone on with."""

import errno
import logging
import os
import threading
import tracemalloc
from pathlib import Path

import pytest

from atp_cpp.batch.output.rows_file import RowsFile
from atp_cpp.errors import AtpError
from atp_cpp.storage import jsonl
from support.made_rows import CONFIG, lines, made_failure, made_row, write_lines
from support.rows_writer import program

KEY = ("a.jpg", "What?", CONFIG)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


# ---- appending


def test_a_row_is_one_write_of_one_line(path, monkeypatch):
    writes = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda f, data: writes.append(bytes(data)) or real(f, data))
    with RowsFile(path) as rows:
        rows.append(made_row())
        assert lines(path) == writes == [made_row().as_line()]  # there at once
        rows.append(made_failure("b.jpg"))
    assert lines(path) == writes
    assert rows.n_written == 2


def test_the_next_run_goes_on(path):
    with RowsFile(path) as rows:
        assert not rows.done(*KEY)
        rows.append(made_row())
        assert rows.done(*KEY) and not rows.done_earlier(*KEY)
        rows.append(made_failure("b.jpg"))
        assert (rows.n_good, rows.n_failed) == (0, 0)
    with RowsFile(path) as rows:
        assert rows.done(*KEY) and rows.done_earlier(*KEY)
        assert rows.done("b.jpg", "What?", CONFIG)
        assert not rows.done("a.jpg", "Where?", CONFIG)
        assert not rows.done("a.jpg", "What?", "another")
        assert (rows.n_good, rows.n_failed) == (1, 1)
        rows.append(made_row("c.jpg"))
    assert lines(path) == [row.as_line() for row in
                           (made_row(), made_failure("b.jpg"), made_row("c.jpg"))]  # fmt: skip


def test_failed_rows_are_retried_when_asked_for(path):
    write_lines(path, made_failure(), made_row("b.jpg"))
    with RowsFile(path, retry_failed=True) as rows:
        assert not rows.done(*KEY)
        assert rows.done("b.jpg", "What?", CONFIG)
        rows.append(made_failure())
        assert rows.done(*KEY)  # once in a run
    assert len(lines(path)) == 3  # nothing is rewritten
    with RowsFile(path) as rows:
        assert rows.done(*KEY)


def test_an_interrupted_row_is_never_done(path):
    write_lines(path, made_failure(finish_reason="cancelled", caption="A c"))
    with RowsFile(path) as rows:
        assert not rows.done(*KEY)


def test_a_key_is_taken_on_once(path):
    write_lines(path, made_row("b.jpg"))
    with RowsFile(path) as rows:
        assert rows.claim(*KEY) and not rows.claim(*KEY)
        assert rows.done(*KEY)
        assert not rows.claim("b.jpg", "What?", CONFIG)


def test_a_file_that_is_not_open(path):
    with pytest.raises(ValueError, match="not open"):
        RowsFile(path).append(made_row())


def test_folders_are_made(tmp_path):
    path = tmp_path / "new" / "folder" / "rows.jsonl"
    with RowsFile(path) as rows:
        rows.append(made_row())
    assert lines(path) == [made_row().as_line()]


def test_rows_go_to_the_disk_every_few_seconds_and_at_the_end(path, monkeypatch):
    synced = []
    clock = iter(range(0, 100, 2))
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: synced.append(path.stat().st_size) or real(f))
    monkeypatch.setattr(jsonl.time, "monotonic", lambda: next(clock))
    with RowsFile(path) as rows:
        synced.clear()  # of the folder
        for i in range(6):
            rows.append(made_row(f"{i}.jpg"))
    sizes = [len(made_row("0.jpg").as_line()) * n for n in range(7)]
    assert synced[-1] == sizes[6]
    assert 1 <= len(synced[:-1]) <= 3 and set(synced[:-1]) < set(sizes)


def test_no_open_file_is_left(path):
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    for content in (made_row(), b"something else\n"):
        write_lines(path, content)
        try:
            with RowsFile(path) as rows:
                rows.append(made_row("b.jpg"))
        except AtpError:
            pass
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


# ---- repair


def test_a_line_torn_anywhere_is_cut_off(path, caplog):
    first, second, third = (made_row(f"{i} é.jpg") for i in range(3))
    torn = second.as_line()
    for n_bytes in {*range(1, 20), *range(20, len(torn) - 1, 13), len(torn) - 2}:
        write_lines(path, first, torn[:n_bytes])
        caplog.clear()
        with RowsFile(path) as rows:
            assert path.read_bytes() == first.as_line()
            assert rows.done_earlier("0 é.jpg", "What?", CONFIG)
            assert not rows.done("1 é.jpg", "What?", CONFIG)
            rows.append(third)
        assert lines(path) == [first.as_line(), third.as_line()]
        note = f"the last line was torn and is cut off (line 2, {n_bytes} bytes)"
        assert caplog.messages == [f"{path}: {note}"]


def test_a_row_that_lacks_only_its_line_end_is_kept(path):
    write_lines(path, made_row(), made_row("b.jpg").as_line()[:-1])
    with RowsFile(path) as rows:
        assert rows.done_earlier("b.jpg", "What?", CONFIG)
        rows.append(made_row("c.jpg"))
    assert lines(path) == [made_row(name).as_line() for name in ("a.jpg", "b.jpg", "c.jpg")]


def test_a_file_of_one_torn_line(path):
    line = made_row().as_line()
    for n_bytes in (1, 5, 20, len(line) - 2):
        write_lines(path, line[:n_bytes])
        with RowsFile(path) as rows:
            assert not rows.done(*KEY)
        assert path.read_bytes() == b""


def test_a_last_line_that_is_no_json_is_cut_off(path):
    write_lines(path, made_row(), b"\0" * 40 + b"\n")  # as after a power cut
    with RowsFile(path) as rows:
        rows.append(made_row("b.jpg"))
    assert lines(path) == [made_row().as_line(), made_row("b.jpg").as_line()]


def test_damage_in_the_middle_is_kept_and_noted(path, caplog):
    damaged = (b"\0" * 40 + b"\n", b'{"custom_id": "x", "im{"custom_id": "y"}\n', b"[1]\n")
    write_lines(path, made_row(), *damaged, b"\n", made_row("b.jpg"))
    before = path.read_bytes()
    with RowsFile(path) as rows:
        assert rows.done(*KEY) and rows.done("b.jpg", "What?", CONFIG)
        rows.append(made_row("c.jpg"))
    assert path.read_bytes() == before + made_row("c.jpg").as_line()
    (note,) = caplog.messages
    assert note == f"{path}: 3 damaged lines (2, 3, 4) are kept and count as not there"


def test_damage_in_the_first_line_does_not_hide_the_rest(path):
    write_lines(path, made_row().as_line()[:50] + b"\n", made_row("b.jpg"))
    with RowsFile(path) as rows:
        assert rows.done("b.jpg", "What?", CONFIG)
    assert len(lines(path)) == 2


def test_lines_as_other_editors_write_them(path):
    rows = [made_row(f"{i}.jpg").as_line() for i in range(2)]
    write_lines(path, b"\xef\xbb\xbf", *(row[:-1] + b"\r\n\r\n" for row in rows))
    with RowsFile(path) as opened:
        assert opened.n_good == 2


def test_reading_back_holds_no_file_in_memory(path):
    n_rows = 20_000
    with path.open("wb") as stream:
        for i in range(n_rows):
            stream.write(made_row(f"{i}.jpg", caption="word " * 100).as_line())
    size = path.stat().st_size
    tracemalloc.start()
    try:
        with RowsFile(path) as rows:
            assert rows.n_good == n_rows
            peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**21 + 200 * n_rows < size / 2


# ---- what is refused


@pytest.mark.parametrize(
    "content",
    [
        b"my notes\n",
        b"my notes",
        b'{"label": "cat"}\n',
        b'{"label": "cat"}',
        b"[1, 2]\n",
        b"17",
        b'{"custom_id": "request-1", "method": "POST", "url": "/v1"}\n',
        b"GGUF\x03\0\0\0" + bytes(range(256)) * 9,
        b"\n\nmy notes\n",
        b'{"image": "a.jpg", "prompt": "What?", "caption": "A cat."}\n',
    ],
)
def test_somebody_elses_file_is_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(
        AtpError, match=r"rows\.jsonl: line \d is no row of captions.* another --out"
    ):
        RowsFile(path).__enter__()
    assert path.read_bytes() == content


def test_rows_are_refused_where_nothing_shall_be_resumed(path):
    write_lines(path, made_row())
    with pytest.raises(AtpError, match="holds rows already"):
        RowsFile(path, resume=False).__enter__()
    write_lines(path, b"")
    with RowsFile(path, resume=False) as rows:
        rows.append(made_row())


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(AtpError, match="is a folder; expected a file's name"):
        RowsFile(tmp_path).__enter__()


def test_a_file_that_cannot_be_opened(tmp_path, path, monkeypatch):
    path.touch()
    with pytest.raises(AtpError, match=r"rows\.jsonl is no folder; name another --out"):
        RowsFile(path / "rows.jsonl").__enter__()
    with pytest.raises(AtpError, match=r"cannot be opened for rows: Not a directory; name another"):
        RowsFile(path / "folder" / "rows.jsonl").__enter__()

    def refuse(name, *_):
        raise PermissionError(errno.EACCES, "Permission denied", name)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(AtpError, match=rf"{path}: cannot be opened for rows: Permission denied"):
        RowsFile(path).__enter__()


def test_two_writers(path):
    with RowsFile(path) as rows:
        rows.append(made_row())
        with pytest.raises(
            AtpError, match=r"rows\.jsonl is being written by another process; wait"
        ):
            RowsFile(path).__enter__()
        assert "is being written by another process" in program(path, 3).stdout
        rows.append(made_row("b.jpg"))
    assert lines(path) == [made_row().as_line(), made_row("b.jpg").as_line()]
    with RowsFile(path):
        pass


def test_a_file_that_is_replaced_while_its_lock_is_taken(path, monkeypatch):
    write_lines(path, made_row())
    real, calls = jsonl.take_lock, []

    def take_lock(descriptor):
        if not calls:
            path.unlink()  # its writer removed it just now
        calls.append(descriptor)
        return real(descriptor)

    monkeypatch.setattr(jsonl, "take_lock", take_lock)
    with RowsFile(path) as rows:
        assert not rows.done(*KEY)
        rows.append(made_row())
    assert len(calls) == 2
    assert lines(path) == [made_row().as_line()]


# ---- pipes and devices


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_takes_rows(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    with RowsFile(pipe) as rows:
        rows.append(made_row())
        rows.append(made_row("b.jpg"))
    reader.join()
    assert read == [made_row().as_line() + made_row("b.jpg").as_line()]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_whose_reader_is_gone(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with RowsFile(pipe) as rows:
        os.close(reader)
        with pytest.raises(BrokenPipeError):
            rows.append(made_row())


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev/stdout here")
def test_stdout_takes_rows(tmp_path):
    ran = program("/dev/stdout", 1)
    row = made_row("/dev/0.jpg").as_line().decode()
    assert ran.stdout == row + "1\n", ran.stderr


@pytest.fixture(autouse=True)
def _notes(caplog):
    caplog.set_level(logging.INFO, "atp_cpp")
