"""Files of rows, whatever the rows are; what RowsFile's tests say of them holds here too."""

import io
import json
from pathlib import Path

import pytest

from atp_cpp.errors import AtpError, WriteError
from atp_cpp.storage.jsonl import JsonlFile, RowFormat, begins_like, lines_of, read_back

HEAD = b'{"n": '


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


def form(taken, **options):
    """Rows {"n": number}, whose numbers go to `taken`."""

    def take(value):
        is_row = isinstance(value, dict) and value.keys() == {"n"}
        if is_row:
            taken.append(value["n"])
        return is_row

    def foreign(path, number):
        return AtpError(f"{path}:{number} is not ours")

    return RowFormat(HEAD, take, foreign, option="--kept", **options)


def row(n):
    return json.dumps({"n": n}).encode() + b"\n"


def test_lines_know_their_place():
    stream = io.BytesIO(b'\n{"a": 1}\r\n \nbroken\n[2]')
    lines = [(line.number, line.start, line.raw, line.value) for line in lines_of(stream)]
    assert lines == [(2, 1, b'{"a": 1}\r\n', {"a": 1}), (4, 13, b"broken\n", None),
                     (5, 20, b"[2]", [2])]  # fmt: skip


def test_what_is_left_of_a_line():
    whole = row(12)
    assert all(begins_like(whole[:n], HEAD) for n in range(1, len(whole)))
    assert not any(begins_like(raw, HEAD) for raw in (b"my notes", b'{"m": 1}', b"\0\0", b"{'n"))


def test_rows_of_earlier_runs_are_taken_in_and_gone_on_with(path):
    for run in range(3):
        taken = []
        with JsonlFile(path, form(taken)) as file:
            assert taken == list(range(run))
            file.append(row(run))
            assert file.n_written == 1
    assert path.read_bytes() == row(0) + row(1) + row(2)


@pytest.mark.parametrize("strict", [False, True])
def test_a_torn_last_line_is_cut_off(path, strict):
    for n_bytes in range(1, len(row(34)) - 2):
        path.write_bytes(row(12) + row(34)[:n_bytes])
        taken = []
        with JsonlFile(path, form(taken, strict=strict)):
            assert taken == [12]
        assert path.read_bytes() == row(12)


@pytest.mark.parametrize("strict", [False, True])
def test_a_row_that_lacks_only_its_end_is_kept(path, strict):
    path.write_bytes(row(12) + row(34)[:-1])
    taken = []
    with JsonlFile(path, form(taken, strict=strict)) as file:
        file.append(row(56))
    assert taken == [12, 34]
    assert path.read_bytes() == row(12) + row(34) + row(56)


@pytest.mark.parametrize("strange", [b"broken\n", b'{"m": 1}\n', b"[1]\n"])
def test_damage_in_the_middle(path, strange, caplog):
    path.write_bytes(row(1) + strange + row(2))
    before, taken = path.read_bytes(), []
    with JsonlFile(path, form(taken)):
        pass
    assert taken == [1, 2]
    assert caplog.messages == [f"{path}: 1 damaged lines (2) are kept and count as not there"]
    with pytest.raises(AtpError, match=r"rows\.jsonl:2 is not ours"):
        JsonlFile(path, form([], strict=True)).__enter__()
    assert path.read_bytes() == before


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("content", [b"my notes", b"my notes\n", b'{"m": 1}', b"\n7\n", b"\0\0"])
def test_somebody_elses_file_is_left_alone(path, content, strict):
    path.write_bytes(content)
    number = 2 if content.startswith(b"\n") else 1
    with pytest.raises(AtpError, match=rf"rows\.jsonl:{number} is not ours"):
        JsonlFile(path, form([], strict=strict)).__enter__()
    assert path.read_bytes() == content


def test_reading_alone_changes_nothing(path):
    content = row(1) + b"\n" + row(2)[:4]
    taken = []
    last, strange = read_back(io.BytesIO(content), path, form(taken, strict=True))
    assert (taken, strange) == ([1], [])
    assert (last.number, last.start, last.value) == (3, len(row(1)) + 1, None)
    assert read_back(io.BytesIO(b"\n \n"), path, form(taken)) == (None, [])


def test_errors_name_the_option_of_the_user(path, tmp_path):
    path.write_bytes(row(1))
    with JsonlFile(path, form([])), pytest.raises(AtpError, match=r"or name another --kept$"):
        JsonlFile(path, form([])).__enter__()
    sharing = " (or share it)"
    with (
        JsonlFile(path, form([])),
        pytest.raises(AtpError, match=r"name another --kept \(or share it\)$"),
    ):
        JsonlFile(path, form([], sharing=sharing)).__enter__()
    for place, words in (
        (tmp_path, r"is a folder; expected a file's name for the rows \(--kept\)"),
        (path / "below", r"rows\.jsonl is no folder; name another --kept"),
        (path / "far" / "below", "cannot be opened for rows: .*name another --kept"),
    ):
        with pytest.raises(AtpError, match=words):
            JsonlFile(place, form([])).__enter__()
    with pytest.raises(AtpError, match=r"holds rows already.*name another --kept"):
        JsonlFile(path, form([]), resume=False).__enter__()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_named():
    with (
        JsonlFile("/dev/full", form([])) as file,
        pytest.raises(WriteError, match=r"cannot be written any further: .*the 0 rows of"),
    ):
        file.append(row(1))
