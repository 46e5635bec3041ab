"""Images that the command line takes from elsewhere than a file, and several at once."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from support.fake_batch_engine import FakeBatchEngine

FILES = ("-m", "m.gguf", "--mmproj", "p.gguf")


def encoded(grey):
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(out, "PNG")
    return out.getvalue()


def greys(engine):
    """Of the images of the one call that an engine had."""
    (call,) = engine.made[0].calls
    return [int(image[0, 0, 0]) for image in call["images"]]


@pytest.fixture
def stdin(monkeypatch):
    def put(data):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))

    return put


@pytest.fixture
def web(monkeypatch):
    """Addresses that were fetched; the picture at /60 is of grey 60."""
    fetched = []

    def download(url):
        fetched.append(url)
        return encoded(int(url.rsplit("/", 1)[1]))

    monkeypatch.setattr("atp_cpp.images.urls._download", download)
    return fetched


def test_an_image_on_stdin(cli, fake_engine, stdin):
    engine = fake_engine()
    stdin(encoded(60))
    ran = cli("caption", "-", *FILES, "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["image"] == "stdin"
    assert greys(engine) == [60]


@pytest.mark.parametrize("data", [b"", b"text"])
def test_stdin_that_is_no_image(cli, fake_engine, stdin, data):
    fake_engine()
    stdin(data)
    ran = cli("caption", "-", *FILES)
    assert ran.code == 2 and "stdin: expected an image" in ran.err


@pytest.mark.parametrize("more", [["x.png"], ["--out", "rows.jsonl"]])
def test_stdin_among_others(cli, fake_engine, more):
    fake_engine()
    ran = cli("caption", "-", *more, *FILES)
    assert ran.code == 2 and "- is one image on stdin, named alone" in ran.err


def test_one_question_over_several_images(cli, fake_engine, stdin, tmp_path):
    engine = fake_engine()
    (tmp_path / "a.png").write_bytes(encoded(10))
    stdin(encoded(60))
    ran = cli("caption", "--together", tmp_path / "a.png", "-", "-p", "Which?", *FILES, "--json")
    (row,) = [json.loads(line) for line in ran.out.splitlines()]
    assert row["image"] == f"{tmp_path / 'a.png'}, stdin"
    assert greys(engine) == [10, 60]


@pytest.mark.parametrize("more", [["--out", "r.jsonl"], ["--txt"], ["-p", "a", "-p", "b"]])
def test_what_does_not_go_with_together(cli, fake_engine, more):
    fake_engine()
    ran = cli("caption", "--together", "a.png", "b.png", *more, *FILES)
    assert ran.code == 2 and "--together is one question" in ran.err


def test_web_addresses_need_leave(cli, fake_engine, web):
    fake_engine()
    ran = cli("caption", "https://x.test/60", *FILES)
    assert ran.code == 2 and "--allow-http" in ran.err and web == []


def test_a_web_address(cli, fake_engine, web):
    engine = fake_engine()
    assert cli("caption", "--allow-http", "https://x.test/60", *FILES).code == 0
    assert greys(engine) == [60]


def test_web_addresses_among_many(cli, fake_engine, web, tmp_path):
    fake_engine(of=FakeBatchEngine)
    (tmp_path / "l.jsonl").write_text('{"image": "http://x.test/30"}\n')
    out = tmp_path / "rows.jsonl"
    command = ("caption", "--allow-http", "https://x.test/70", "--jsonl", tmp_path / "l.jsonl",
               "--out", out, *FILES)  # fmt: skip
    assert cli(*command).code == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {(r["image"], r["status"]) for r in rows} == {
        ("https://x.test/70", "ok"), ("http://x.test/30", "ok"),
    }  # fmt: skip
    n_fetched = len(web)
    assert "2 done before" in cli(*command).err
    assert len(web) == n_fetched, "what is done is not fetched again"


def test_how_answers_are_drawn(cli, fake_engine, scene):
    engine = fake_engine()
    draw = (
        "--temp",
        1,
        "--top-k",
        7,
        "--top-p",
        0.5,
        "--min-p",
        0.25,
        "--stop",
        "A",
        "--stop",
        "B",
    )
    assert cli("caption", scene, *FILES, *draw).code == 0
    (call,) = engine.made[0].calls
    want = {"temp": 1.0, "top_k": 7, "top_p": 0.5, "min_p": 0.25, "stop": ["A", "B"]}
    assert {name: call[name] for name in want} == want
    assert "top_p must be above 0" in cli("caption", scene, *FILES, "--top-p", 2).err


def test_the_program_alone_prints_its_help(cli):
    ran = cli()
    assert ran.code == 2 and "commands:" in ran.out and "caption" in ran.out


def test_what_a_command_does_not_know_shows_its_usage(cli):
    ran = cli("caption", "x.png", "--frobnicate")
    assert ran.code == 2
    assert "usage: atp-cpp caption" in ran.err and "--frobnicate" in ran.err


def test_layers_on_an_accelerator_that_is_not_there(cli, fake_engine, scene):
    fake_engine()
    assert "-ngl 99 does nothing" in cli("caption", scene, *FILES, "-ngl", 99).err
    for layers in (0, -1):
        assert "does nothing" not in cli("caption", scene, *FILES, "-ngl", layers).err
