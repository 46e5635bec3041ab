"""What Python's users hand in: images of every kind, prompts of no kind, captions to keep."""

import copy
import dataclasses
import io
import pickle

import numpy as np
import pytest

from atp_cpp import AtpError, SamplingConfig


@pytest.fixture(scope="module")
def said(tiny_captioner, tmp_path_factory):
    return SamplingConfig(n_predict=4)


def forms(path):
    data = path.read_bytes()
    written = io.BytesIO()
    written.write(data)  # stands at its end
    return [path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), written]


def test_every_form_of_an_image(tiny_captioner, scene, said):
    expected = tiny_captioner.caption(scene, sampling=said).text
    with scene.open("rb") as stream:
        given = [*forms(scene), stream]
        for image in given:
            assert tiny_captioner.caption(image, sampling=said).text == expected
            assert tiny_captioner.caption([image], sampling=said).text == expected
        rows = list(tiny_captioner.caption_many(given, sampling=said))
    assert [row.caption for row in rows] == [expected] * len(given)
    assert len({row.sha256 for row in rows}) == 1
    url = {"type": "image_url", "image_url": {"url": scene}}  # a pathlib.Path
    message = {"role": "user", "content": [url, {"type": "text", "text": "Describe the image."}]}
    out = tiny_captioner.create_chat_completion([message], max_tokens=4)
    assert out["choices"][0]["message"]["content"] == expected


def test_files_that_give_no_bytes(tiny_captioner, scene):
    with pytest.raises(AtpError, match="open for reading bytes"):
        tiny_captioner.caption(io.StringIO("abc"))
    with (
        scene.with_suffix(".new").open("wb") as new,
        pytest.raises(AtpError, match="cannot be read"),
    ):
        tiny_captioner.caption(new)
    with scene.open("rb") as closed:
        pass
    with pytest.raises(AtpError, match="closed file"):
        tiny_captioner.caption(closed)


@pytest.mark.parametrize("image", [None, 5, 1.5, {"a": 1}, [None], [5], object()])
def test_no_image(tiny_captioner, image):
    with pytest.raises(AtpError, match="expected an image"):
        tiny_captioner.caption(image)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (["a", "b"], "caption_many takes several"),
        (None, "expected one text"),
        (5, "expected one text"),
        ("a\ud800b", r"surrogate pair \(U\+D800\) at character 1"),
    ],
)
def test_no_prompt(tiny_captioner, scene, prompt, says):
    with pytest.raises(AtpError, match=says):
        tiny_captioner.caption(scene, prompt)
    if prompt != ["a", "b"]:
        with pytest.raises(AtpError, match=r"got \w+|surrogate"):
            tiny_captioner.caption_many([scene], prompt)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 1.5}, "batch_size must be a whole number, got 1.5"),
        ({"batch_size": "2"}, "batch_size must be a whole number"),
        ({"batch_size": True}, "batch_size must be a whole number"),
        ({"n_load_threads": 0.5}, "n_load_threads must be a whole number"),
        ({"kv_budget": 1e9}, "kv_budget must be a whole number"),
    ],
)
def test_numbers_of_a_batch(tiny_captioner, scene, options, says):
    with pytest.raises(AtpError, match=says):
        tiny_captioner.caption_many([scene], **options)


@pytest.mark.parametrize("images", [None, 5, b"abc", io.BytesIO(b"abc")])
def test_no_images(tiny_captioner, images):
    with pytest.raises(AtpError, match="expected several images"):
        tiny_captioner.caption_many(images)


@pytest.mark.parametrize(
    "draw",
    [{"n_predict": 1.5}, {"seed": "1"}, {"temp": "hot"}, {"stop": "end"}, {"stop": (5,)},
     {"stop": ("\ud800",)}, {"grammar": 5}, {"repeat_penalty": 0.0}, {"repeat_penalty": -1.0},
     {"presence_penalty": float("nan")}, {"frequency_penalty": float("inf")},
     {"repeat_last_n": -1}],
)  # fmt: skip
def test_no_sampling(draw):
    with pytest.raises(AtpError, match=next(iter(draw)).split("_")[0]):
        SamplingConfig(**draw)


def test_numpys_numbers_are_numbers(tiny_captioner, scene):
    draw = SamplingConfig(n_predict=np.int64(3), temp=np.float32(0))
    rows = list(tiny_captioner.caption_many([scene], batch_size=np.int32(2), sampling=draw))
    assert [row.status for row in rows] == ["ok"]


def test_a_caption_is_kept(tiny_captioner, scene, said):
    caption = tiny_captioner.caption(scene, policy="fastv:keep=0.25,after=2", sampling=said)
    for same in (pickle.loads(pickle.dumps(caption)), copy.copy(caption), copy.deepcopy(caption)):
        assert same == caption
        assert hash(same) == hash(caption)
        assert same.report.kept == caption.report.kept
        assert same.report.kv_bytes == caption.report.kv_bytes > 0
    told = dataclasses.asdict(caption)
    assert told["text"] == caption.text
    assert told["report"] == caption.report
    assert "n_image_tokens=64, n_kept=[16], tokens_mean=28.0" in repr(caption)
    other = tiny_captioner.caption(scene, sampling=said)
    assert other != caption
    assert other.report != 5
