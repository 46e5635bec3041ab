"""Rows read back: which count as done, and which row of a key is the last."""

import tracemalloc

import pytest

from atp_cpp.batch.output.resume import Done, key_of, read_rows
from atp_cpp.errors import AtpError
from support.made_rows import CONFIG, made_failure, made_row, write_lines


def test_keys_tell_their_parts_apart():
    parts = [
        ("ab", "c", "d"),
        ("a", "bc", "d"),
        ("a", "b", "cd"),
        ("", "abc", "d"),
        ("ab", "c", ""),
    ]
    keys = {key_of(*key) for key in parts}
    assert len(keys) == len(parts)
    assert {len(key) for key in keys} == {16}
    assert key_of("caf\udce9.jpg", "p", "h") != key_of("caf\udcea.jpg", "p", "h")


GOOD, FAILED, CANCELLED = (
    made_row(), made_failure(), made_failure(finish_reason="cancelled", caption="A c")
)  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "is_done", "when_retried"),
    [
        ([], False, False),
        ([GOOD], True, True),
        ([FAILED], True, False),
        ([CANCELLED], False, False),
        ([FAILED, GOOD], True, True),
        ([GOOD, FAILED], True, False),
        ([CANCELLED, FAILED], True, False),
        ([FAILED, CANCELLED], False, False),
        ([made_row(custom_id="b.jpg"), made_row(prompt="Who?")], False, False),
        ([made_row(config_hash="another")], False, False),
    ],
)
def test_what_is_done(rows, is_done, when_retried):
    key = key_of("a.jpg", "What?", CONFIG)
    for retry_failed, expected in ((False, is_done), (True, when_retried)):
        done = Done(retry_failed=retry_failed)
        for row in rows:
            done.count(row.as_dict())
        assert (key in done, done.earlier(key)) == (expected, expected)


def test_what_this_run_takes_on_is_done_too():
    done = Done(retry_failed=True)
    done.count(FAILED.as_dict())
    key = key_of("a.jpg", "What?", CONFIG)
    assert done.claim(key) and not done.claim(key)
    assert key in done and not done.earlier(key)
    assert (done.n_good, done.n_failed) == (0, 1)


# ---- read_rows


def test_the_last_row_of_a_key_wins(tmp_path):
    again = made_row(caption="after the repair")
    other = made_row(config_hash="another")
    path = write_lines(
        tmp_path / "rows.jsonl", made_failure(), made_row("b.jpg"), other, again, made_row("c.jpg")
    )
    assert list(read_rows(path)) == [made_row("b.jpg"), other, again, made_row("c.jpg")]


def test_lines_that_are_no_rows_are_left_out_and_noted(tmp_path, caplog):
    damaged = made_row("b.jpg").as_line().replace(b'"n_kept": []', b'"n_kept": "x"')
    torn = made_row("d.jpg").as_line()[:30]
    path = write_lines(
        tmp_path / "rows.jsonl", made_row(), b"\0\0\0\n", damaged, b'{"a": 1}\n', made_row("c.jpg"),
        torn,
    )  # fmt: skip
    assert list(read_rows(path)) == [made_row(), made_row("c.jpg")]
    notes = [record.getMessage() for record in caplog.records]
    assert [note.partition(": ")[0] for note in notes] == [f"{path}:{n}" for n in (2, 3, 4, 6)]
    assert "n_kept is 'x'" in notes[1]


def test_rows_that_are_appended_meanwhile_are_left_for_another_time(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", made_row("a.jpg"), made_row("b.jpg"))
    rows = read_rows(path)
    assert next(rows) == made_row("a.jpg")
    with path.open("ab") as stream:
        stream.write(b"".join(made_row(f"{i}.jpg").as_line() for i in range(3)))
    assert list(rows) == [made_row("b.jpg")]


def test_a_file_of_nothing(tmp_path):
    assert list(read_rows(write_lines(tmp_path / "rows.jsonl", b""))) == []
    torn = write_lines(tmp_path / "torn.jsonl", made_row().as_line()[:40])
    assert list(read_rows(torn)) == []


def test_a_file_of_something_else(tmp_path):
    path = write_lines(tmp_path / "notes.txt", b"buy milk\n")
    with pytest.raises(AtpError, match=r"notes\.txt: line 1 is no row of captions; name a file"):
        list(read_rows(path))
    with pytest.raises(AtpError, match=r"missing\.jsonl: cannot be read: No such file"):
        list(read_rows(tmp_path / "missing.jsonl"))


def test_reading_holds_no_file_in_memory(tmp_path):
    n_rows = 20_000
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as stream:
        for i in range(n_rows):
            stream.write(made_row(f"{i}.jpg", caption="word " * 100).as_line())
    size = path.stat().st_size
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(path)) == n_rows
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**21 + 100 * n_rows < size / 4
