"""Replies of an evaluation on disk: the format, what is resumed, and what is refused."""

import errno
import os

import pytest

from atp_cpp.errors import AtpError, WriteError
from atp_cpp.evaluation.evaluate import EvalRow
from atp_cpp.evaluation.rows_file import EvalRowsFile, read_rows

ROW = EvalRow("none", "é.png", "What?", "cat", "what", "hash", "A cat.", False, n_kept=[4, 2],
              n_image_tokens=16, tokens_mean=12.5, kv_bytes=1024, t_prefill=2.0)  # fmt: skip
# as version 0.1 wrote it
LINE = (
    '{"plan": "none", "image": "é.png", "question": "What?", "answer": "cat", "kind": "what", '
    '"config_hash": "hash", "reply": "A cat.", "correct": false, "error": "", '
    '"n_image_tokens": 16, "n_kept": [4, 2], "tokens_mean": 12.5, "kv_bytes": 1024, '
    '"t_prefill": 2.0}\n'
).encode()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


def row(question="What?", **changes):
    return EvalRow("none", "a.png", question, "cat", "what", "hash", **changes)


def test_the_format_is_what_earlier_versions_wrote_and_read(path):
    with EvalRowsFile(path) as kept:
        kept.append(ROW)
        assert path.read_bytes() == LINE  # there at once
    with EvalRowsFile(path) as kept:
        assert kept.done == {ROW.key: ROW}
    assert read_rows(path) == {ROW.key: ROW}
    assert path.read_bytes() == LINE


def test_a_row_of_before_a_field_was_there(path):
    path.write_bytes(LINE.replace(b', "t_prefill": 2.0', b""))
    assert read_rows(path)[ROW.key].t_prefill == 0.0


def test_failed_rows_are_asked_again(path):
    with EvalRowsFile(path) as kept:
        kept.append(row(error="no such file"))
        kept.append(row("Where?", reply="left"))
    with EvalRowsFile(path) as kept:
        assert list(kept.done) == [row("Where?").key]
        kept.append(row(reply="A cat."))
    assert read_rows(path)[row().key].reply == "A cat."
    assert path.read_bytes().count(b"\n") == 3  # nothing is rewritten


def test_a_name_that_is_no_text_comes_back(path):
    odd = EvalRow("none", "caf\udce9.png", "What?", "cat", "what", "hash", "A cat.")
    with EvalRowsFile(path) as kept:
        kept.append(odd)
    path.read_text(encoding="utf-8")
    assert read_rows(path) == {odd.key: odd}


def test_a_torn_last_line_is_cut_off_and_a_whole_one_kept(path):
    second = LINE.replace(b"What?", b"Where?")
    for n_bytes in range(1, len(second) - 1, 7):
        path.write_bytes(LINE + second[:n_bytes])
        assert list(read_rows(path)) == [ROW.key]
        with EvalRowsFile(path) as kept:
            assert list(kept.done) == [ROW.key]
        assert path.read_bytes() == LINE
    path.write_bytes(LINE + second[:-1])
    with EvalRowsFile(path) as kept:
        assert [key[2] for key in kept.done] == ["What?", "Where?"]
    assert path.read_bytes() == LINE + second


def test_no_file_and_an_empty_one(path):
    assert read_rows(path) == {}
    with EvalRowsFile(path) as kept:
        assert kept.done == {}
    assert path.read_bytes() == b"" and read_rows(path) == {}


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b"my notes", 1),
        (b"my notes\n", 1),
        (b'{"a": 1}\n', 1),
        (b"[1]\n", 1),
        (LINE + b'{"a": 1}\n' + LINE, 2),
        (LINE + LINE[:50] + b"\n" + LINE, 2),
        (LINE + b'{"a": 1}\n', 2),
        (LINE[:50] + b"\n" + LINE, 1),
        (LINE.replace(b'"none"', b"[1]"), 1),
        (LINE.replace(b'"t_prefill"', b'"t"'), 1),
    ],
)
def test_a_file_of_something_else_is_left_alone(path, content, number):
    path.write_bytes(content)
    words = rf"rows\.jsonl:{number}: not a row of an evaluation; give --rows another file"
    with pytest.raises(AtpError, match=words):
        EvalRowsFile(path).__enter__()
    with pytest.raises(AtpError, match=words):
        read_rows(path)
    assert path.read_bytes() == content


def test_two_evaluations_cannot_write_one_file(path):
    with EvalRowsFile(path) as kept:
        kept.append(ROW)
        with pytest.raises(
            AtpError, match=r"rows\.jsonl is being written by another process; .*another --rows$"
        ):
            EvalRowsFile(path).__enter__()
    with EvalRowsFile(path) as kept:  # free again
        assert list(kept.done) == [ROW.key]


def test_a_full_disk_leaves_whole_rows(path, monkeypatch):
    real = os.write

    def write(descriptor, data):
        if len(data) < len(LINE):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:50])

    with EvalRowsFile(path) as kept:
        kept.append(ROW)
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(WriteError, match=r"rows\.jsonl: cannot be written any further: No sp"):
            kept.append(ROW)
    assert path.read_bytes() == LINE


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(AtpError, match="cannot be read: Is a directory"):
        read_rows(tmp_path)
    with pytest.raises(AtpError, match=r"is a folder; .*\(--rows\)"):
        EvalRowsFile(tmp_path).__enter__()
