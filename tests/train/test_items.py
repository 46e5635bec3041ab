"""Files of training data -> items."""

import json
import logging

import pytest

from atp_cpp.errors import AtpError
from atp_cpp.train.items import Item, Turn, load_items


def write(path, *rows, lines=True):
    path.write_text("\n".join(json.dumps(r) for r in rows) if lines else json.dumps(list(rows)))
    return path


def talk(*values):
    speakers = ("human", "gpt")
    return [{"from": speakers[i % 2], "value": value} for i, value in enumerate(values)]


def test_rows_of_one_image_become_one_item(tmp_path):
    file = write(
        tmp_path / "q.jsonl",
        {"image": "a.png", "question": "what?", "answer": "this", "kind": "shape", "box": None},
        {"image": "b.png", "question": "where?", "answer": "there"},
        {"image": "a.png", "question": "how many?", "answer": "2", "kind": "count"},
    )
    assert load_items(file) == [
        Item(
            (tmp_path / "a.png",), (Turn("what?", "this", "shape"), Turn("how many?", "2", "count"))
        ),
        Item((tmp_path / "b.png",), (Turn("where?", "there", "all"),)),
    ]


@pytest.mark.parametrize("lines", [False, True])
def test_each_turn_of_a_llava_conversation_is_a_question_of_its_own(tmp_path, lines, caplog):
    file = write(
        tmp_path / "llava.json",
        {
            "id": "1",
            "image": "coco/1.jpg",
            "conversations": talk("<image>\nWhat is it?", "A cat.", "Why?\n<image>", " It is. "),
        },
        {"id": "2", "conversations": talk("Hello", "Hi")},
        {"id": "3", "image": ["x.jpg", "y.jpg"], "conversations": talk("<image><image> ?", "No.")},
        lines=lines,
    )
    pictures = tmp_path / "pictures"
    with caplog.at_level(logging.WARNING, "atp_cpp"):
        items = load_items(file, pictures)
    turns = (Turn("What is it?", "A cat."), Turn("Why?", "It is."))
    assert items == [Item((pictures / "coco/1.jpg",), turns)]
    assert "1 of the entries left out, without an image" in caplog.text
    assert "1 of the entries left out, with more than one image" in caplog.text


@pytest.mark.parametrize(
    ("conversations", "says"),
    [
        (talk("<image>\nWhat?"), "questions and answers in turn"),
        (None, "questions and answers in turn"),
        (talk("What?", "That.")[::-1], "expected turn 1 to be from human, got gpt"),
        ([{"from": "human", "value": 3}, {"from": "gpt", "value": ""}], "the value of turn 1"),
        (["What?", "That."], "turn 1 to be from human, got str"),
    ],
)
def test_a_broken_conversation_is_named(tmp_path, conversations, says):
    good = {"id": "a", "image": "a.jpg", "conversations": talk("What?", "That.")}
    bad = {"id": "b7", "image": "b.jpg", "conversations": conversations}
    file = write(tmp_path / "llava.json", good, bad, lines=False)
    with pytest.raises(AtpError, match=rf"llava\.json: entry 2 \(id b7\): .*{says}"):
        load_items(file)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[{]", "not JSON"),
        ("[]", "holds no question about an image"),
        ('[{"conversations": []}]', "holds no question about an image"),
        ("[3]", "entry 1: expected an object"),
        ("", "holds no question"),
        ('{"image": "a.png"}', "q.json:1: expected text in question, answer"),
        ('[{"image": 3, "conversations": []}]', "expected text in image, got int"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, says):
    file = tmp_path / "q.json"
    file.write_text(text)
    with pytest.raises(AtpError, match=says):
        load_items(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AtpError, match=r"nothing\.json: cannot be read"):
        load_items(tmp_path / "nothing.json")
