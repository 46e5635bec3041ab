"""Lists of paths and JSON lines: what a line says, and lines that say nothing sensible."""

import base64
import io
import json
import os
import sys

import pytest

from atp_cpp.batch.source import lists
from atp_cpp.batch.source.lists import Line, check_readable, is_stream, item_of_json, lines_of
from atp_cpp.errors import AtpError

ASKED = ("What is it?",)


def written(tmp_path, data):
    path = tmp_path / "list"
    path.write_bytes(data)
    return str(path)


def item(entry, *, folder="", number=7):
    data = entry if isinstance(entry, bytes) else json.dumps(entry).encode()
    return item_of_json(Line(number, data), where=f"l:{number}", folder=folder, prompts=ASKED)


# ---- lines


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n\r\n \t\n", []),
        (b"a\nb\n", [(1, b"a"), (2, b"b")]),
        (b"a\n\nb", [(1, b"a"), (3, b"b")]),
        (b"a\r\nb\r\n", [(1, b"a"), (2, b"b")]),
        (b"\xef\xbb\xbfa\n", [(1, b"a")]),
        (b" a \n", [(1, b" a ")]),  # blanks may belong to a name
        (b"caf\xe9\n", [(1, b"caf\xe9")]),
        (b"#a\n", [(1, b"#a")]),
    ],
)
def test_lines(tmp_path, data, lines):
    assert [(line.number, line.data) for line in lines_of(written(tmp_path, data))] == lines


def test_lines_are_read_as_they_are_asked_for(tmp_path):
    path = written(tmp_path, b"a\nb\n" + b"c\n" * 100_000)
    lines = lines_of(path)
    next(lines)
    with open(path, "r+b") as stream:  # what is far behind is not read yet
        stream.seek(190_000)
        stream.write(b"X")
    assert any(b"X" in line.data for line in lines)


def test_stdin(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")))
    assert [line.data for line in lines_of("-")] == [b"a", b"b"]
    assert not sys.stdin.closed


@pytest.mark.parametrize("end", [b"", b"\n", b"\nb\n"])
@pytest.mark.parametrize("length", [9, 10, 11, 30, 35])
def test_a_line_too_long_to_hold_is_an_error_of_that_line(tmp_path, monkeypatch, end, length):
    monkeypatch.setattr(lists, "MAX_LINE", 10)
    first, *rest = lines_of(written(tmp_path, b"x" * length + end))
    assert first.number == 1
    assert bool(first.error) == (length >= 10)
    assert len(first.data) < 10
    assert [(line.number, line.data) for line in rest] == ([(2, b"b")] if b"b" in end else [])


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_utf16_is_told(tmp_path, mark):
    with pytest.raises(AtpError, match="expected UTF-8 text, got UTF-16"):
        list(lines_of(written(tmp_path, mark + "a\n".encode("utf-16-le"))))


def test_lists_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(AtpError, match="no such file"):
        check_readable(str(tmp_path / "none"))
    with pytest.raises(AtpError, match="got a folder"):
        check_readable(str(tmp_path))
    with pytest.raises(AtpError, match="cannot be read"):
        check_readable("a\0b")
    path = written(tmp_path, b"")

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(AtpError, match="no permission"):
        check_readable(path)


def test_of_a_pipe_nothing_is_read_before_its_lines_are(tmp_path):
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    assert is_stream(path)
    assert is_stream("-")
    assert not is_stream(written(tmp_path, b""))
    check_readable(path)  # opening it would wait for a writer


# ---- JSON


def test_an_image_alone():
    one = item({"image": "a/b.jpg"}, folder="data")
    assert (one.custom_id, one.image, one.source) == ("a/b.jpg", "data/a/b.jpg", "data/a/b.jpg")
    assert one.prompts == ASKED
    assert not one.error


def test_an_absolute_path_stays():
    assert item({"image": "/x/b.jpg"}, folder="data").source == "/x/b.jpg"


@pytest.mark.parametrize(
    ("more", "prompts"),
    [
        ({}, ASKED),
        ({"prompt": "A?"}, ("A?",)),
        ({"prompts": ["A?", "B?"]}, ("A?", "B?")),
        ({"prompt": None, "prompts": None}, ASKED),
    ],
)
def test_prompts(more, prompts):
    assert item({"image": "b.jpg", **more}).prompts == prompts


@pytest.mark.parametrize(("given", "custom_id"), [("x", "x"), (12, "12"), (None, "b.jpg")])
def test_custom_id(given, custom_id):
    assert item({"image": "b.jpg", "custom_id": given}).custom_id == custom_id


def test_unknown_keys_are_left_alone():
    assert not item({"image": "b.jpg", "answer": 3, "nested": {"a": []}}).error


def test_bytes_of_a_name_that_are_no_utf8_come_back():
    one = item(b'{"image": "caf\xe9.jpg"}')
    assert os.fsencode(one.source) == b"caf\xe9.jpg"


@pytest.mark.parametrize("head", ["data:image/png;base64,", "data:;base64,"])
def test_data_url(head):
    one = item({"image": head + base64.b64encode(b"bytes").decode()})
    assert one.source == b"bytes"
    assert one.image == one.custom_id == "l:7"


def test_data_url_without_base64():
    assert item({"image": "data:image/gif,GIF8%39a"}).source == b"GIF89a"


def test_data_url_with_an_id():
    one = item({"image": "data:;base64,QQ==", "custom_id": "x"})
    assert (one.custom_id, one.image) == ("x", "l:7")


def test_web_address_is_no_path_in_the_folder():
    one = item({"image": "https://x.org/a.jpg"}, folder="data")
    assert one.image == one.source == "https://x.org/a.jpg"


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (b"{", "got no JSON"),
        (b"a.jpg", "got no JSON"),
        (b"\xff\xff", "got no JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b"[]", "got list"),
        (b'"a.jpg"', "got str"),
        (b"null", "got NoneType"),
        ({}, "got the keys []"),
        ({"img": "a.jpg"}, "got the keys ['img']"),
        ({"image": ""}, "got the keys"),
        ({"image": 3}, "got the keys"),
        ({"image": "a.jpg", "custom_id": True}, "custom_id"),
        ({"image": "a.jpg", "custom_id": ""}, "custom_id"),
        ({"image": "a.jpg", "custom_id": ["x" * 999]}, "custom_id"),
        ({"image": "a.jpg", "prompt": 3}, "expected text"),
        ({"image": "a.jpg", "prompts": []}, "expected text"),
        ({"image": "a.jpg", "prompts": "one"}, "expected text"),
        ({"image": "a.jpg", "prompts": ["one", 2]}, "expected text"),
        ({"image": "a.jpg", "prompt": "a", "prompts": ["b"]}, "got both"),
        ({"image": "data:image/png"}, "base64"),
        ({"image": "data:;base64,Q"}, "the data URL is damaged"),
        ({"image": "data:;base64,Q*=="}, "the data URL is damaged"),
        (b'{"image": ' + b"9" * 5000 + b"}", "l:7"),
    ],
)
def test_lines_without_sense_are_items_with_an_error(entry, says):
    one = item(entry)
    assert one.error.startswith("l:7: ")
    assert says in one.error
    assert len(one.error) < 300
    assert one.custom_id == "l:7"
    assert one.prompts == ASKED


def test_an_error_keeps_the_id_and_the_prompt_of_its_line():
    one = item({"custom_id": "x", "prompt": "A?"})
    assert one.error
    assert (one.custom_id, one.prompts) == ("x", ("A?",))


def test_a_line_that_was_too_long():
    line = Line(3, b"", "too long")
    one = item_of_json(line, where="l:3", folder="", prompts=ASKED)
    assert one.error == "l:3: too long"
