"""Chat completions: what reaches the engine, and OpenAI's dictionaries; then the demo model."""

import base64
import itertools
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atp_cpp import Captioner, SamplingConfig
from atp_cpp.errors import AtpError, ImageError, ModelError, PlanError, StageError
from atp_cpp.images.load import load_image

M = "<__media__>"
EXAMPLE = Path(__file__).parents[2] / "examples" / "scene.png"


def make(engine, **options):
    cap = Captioner("folder/model.gguf", mmproj="mmproj.gguf", **options)
    return cap, engine.made[0]


def image(url):
    return {"type": "image_url", "image_url": {"url": str(url)}}


def text(words):
    return {"type": "text", "text": words}


def ask(scene, words="What is this?"):
    return [{"role": "user", "content": [image(scene), text(words)]}]


def refused(cap, messages, kind=AtpError, **options):
    with pytest.raises(kind) as caught:
        cap.create_chat_completion(messages, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_dictionary_is_openais(fake_engine, scene):
    cap, _ = make(fake_engine())
    out = cap.create_chat_completion(ask(scene))
    assert out.pop("id").startswith("chatcmpl-")
    assert isinstance(out.pop("created"), int)
    assert out == {
        "object": "chat.completion",
        "model": "model.gguf",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "A red circle."},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 24, "completion_tokens": 4, "total_tokens": 28},
    }


def test_a_conversation_reaches_the_engine(fake_engine, scene, pixels, tmp_path):
    cap, engine = make(fake_engine())
    other = tmp_path / "other.npy.png"
    Image.fromarray(pixels).save(other)
    data = f"data:image/png;base64,{base64.b64encode(scene.read_bytes()).decode()}"
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [image(data), text("What?")]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": ["And ", {"type": "image_url", "image_url": str(other)}, "?"]},
    ]
    cap.create_chat_completion(
        messages, max_tokens=9, temperature=0.5, top_p=0.25, top_k=3, min_p=0.125, seed=7,
        stop="END", policy="fastv:keep=0.25,after=2",
    )  # fmt: skip
    (call,) = engine.calls
    assert call["prompt"] == (
        f"USER: Be brief.USER: {M}\nWhat?USER: A cat.USER: And {M}\n? ASSISTANT:"
    )  # the fake model's template knows users only
    np.testing.assert_array_equal(call["images"][0], load_image(scene))
    np.testing.assert_array_equal(call["images"][1], pixels)
    assert call["plan"] == [(2, "fastv", 0.25, 0)]
    drawn = {k: call[k] for k in ("n_predict", "temp", "top_p", "top_k", "min_p", "seed", "stop")}
    assert drawn == {
        "n_predict": 9, "temp": 0.5, "top_p": 0.25, "top_k": 3, "min_p": 0.125, "seed": 7,
        "stop": ["END"],
    }  # fmt: skip


def test_defaults_are_a_captions(fake_engine, scene):
    cap, engine = make(fake_engine())
    cap.caption(scene, "What is this?")
    cap.create_chat_completion(ask(scene))
    first, second = engine.calls
    np.testing.assert_array_equal(first.pop("images"), second.pop("images"))
    assert first == second


def test_text_alone_is_fine(fake_engine):
    cap, engine = make(fake_engine())
    cap.create_chat_completion([{"role": "user", "content": "Hello"}])
    assert engine.calls[0]["prompt"] == "USER: Hello ASSISTANT:"
    assert engine.calls[0]["images"] == []


def test_length_is_told(fake_engine, scene):
    cap, _ = make(fake_engine())
    out = cap.create_chat_completion(ask(scene), max_tokens=2)
    assert out["choices"][0]["finish_reason"] == "length"
    assert out["choices"][0]["message"]["content"] == "A red"


def test_chunks_are_openais(fake_engine, scene):
    cap, _ = make(fake_engine(words=(" ", " A", " red", " \n", "circle", ". ", "\n")))
    chunks = list(cap.create_chat_completion(ask(scene), stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [
        {"role": "assistant"}, {"content": "A"}, {"content": " red"}, {"content": " \ncircle"},
        {"content": "."}, {},
    ]  # fmt: skip
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 5 + ["stop"]
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    whole = cap.create_chat_completion(ask(scene))["choices"][0]["message"]["content"]
    assert "".join(delta.get("content", "") for delta in deltas) == whole


def test_closing_the_stream_ends_the_answer(fake_engine, scene):
    said = []

    class Endless:
        """Words without end; they stop when the one who asked is gone."""

        def __getitem__(self, _):
            return (said.append(1) or " word" for _ in itertools.count())

        def __len__(self):
            return 10

    cap, engine = make(fake_engine(words=Endless()))
    chunks = cap.create_chat_completion(ask(scene), stream=True)
    for _ in range(5):
        next(chunks)
    chunks.close()  # returns, so the endless answer has ended
    n_said = len(said)
    assert not [t for t in threading.enumerate() if t.name == "atp-chat"]
    type(engine).words = (" Free", " again")
    engine.words = (" Free", " again")
    out = cap.create_chat_completion(ask(scene))
    assert out["choices"][0]["message"]["content"] == "Free again"
    assert len(said) == n_said


def test_a_stream_never_begun_costs_nothing(fake_engine, scene):
    cap, engine = make(fake_engine())
    cap.create_chat_completion(ask(scene), stream=True).close()
    assert engine.calls == []


def test_a_failure_in_the_stream_is_raised(fake_engine, scene):
    cap, _ = make(fake_engine(fail_calls=(0,)))
    chunks = cap.create_chat_completion(ask(scene), stream=True)
    assert next(chunks)["choices"][0]["delta"] == {"role": "assistant"}
    with pytest.raises(StageError, match="the context is too small"):
        list(chunks)
    assert not [t for t in threading.enumerate() if t.name == "atp-chat"]


@pytest.mark.parametrize("stream", [False, True])
def test_bad_messages_are_refused_at_once(fake_engine, scene, stream):
    cap, engine = make(fake_engine())
    refused(cap, ask("/no/such.png"), ImageError, stream=stream)
    refused(cap, ask(scene, f"an {M}"), AtpError, stream=stream)
    refused(cap, ask(scene), PlanError, policy="fastv:after=99", stream=stream)
    assert engine.calls == []


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("Hello", "expected a list"),
        ({"role": "user", "content": "x"}, "expected a list"),
        ([], "at least one message"),
        (["Hello"], "messages[0]: expected {"),
        ([{"content": "x"}], "expected role system, user, assistant, developer, got None"),
        (
            [{"role": "tool", "content": "x"}],
            "expected role system, user, assistant, developer, got 'tool'",
        ),
        ([{"role": "user"}], "messages[0]: expected content as a text or a list of parts, got No"),
        ([{"role": "user", "content": []}], "got an empty list"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "messages[0].content[0]: expected"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0]: expected"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "content[0]: expected"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": ""}]}], "[0]: expected"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "[0]: expected"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": [image("a.png")]}],
            "messages[1]: an image in a message of the assistant",
        ),
        ([{"role": "user", "content": [image("http://x/y.png")]}], "allow_http=True"),
    ],
)
def test_messages_that_cannot_be(fake_engine, messages, says):
    cap, _ = make(fake_engine())
    assert says in refused(cap, messages)


SCHEMA = {
    "type": "object",
    "properties": {"shape": {"enum": ["circle", "square"]}, "n": {"type": "integer"}},
    "required": ["shape", "n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_object", "schema": SCHEMA}, SCHEMA),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, SCHEMA),
    ],
)
def test_response_formats_are_grammars(fake_engine, scene, response_format, schema):
    cap, engine = make(fake_engine())
    cap.create_chat_completion(ask(scene), response_format=response_format)
    draw = SamplingConfig(json_schema="" if schema is None else json.dumps(schema))
    assert engine.calls[0]["grammar"] == draw.engine_options()["grammar"]
    assert bool(engine.calls[0]["grammar"]) == (schema is not None)


@pytest.mark.parametrize(
    "response_format",
    ["json", {"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}},
     {"type": "json_object", "schema": {"x": object()}}],
)  # fmt: skip
def test_response_formats_that_cannot_be(fake_engine, scene, response_format):
    cap, engine = make(fake_engine())
    assert "response_format: " in refused(cap, ask(scene), response_format=response_format)
    assert engine.calls == []


def test_schemas_that_cannot_be(fake_engine, scene):
    cap, engine = make(fake_engine())
    asked = {"type": "json_object", "schema": {"type": "no such"}}
    assert "no such" in refused(cap, ask(scene), response_format=asked, stream=True)
    assert engine.calls == []


def test_the_templates_refusal_is_told(fake_engine, scene):
    template = "{{ raise_exception('no') if messages | length > 1 }}USER: {{ messages[0].content }}"
    cap, _ = make(fake_engine(info={"chat_template": template}))
    messages = [{"role": "system", "content": "x"}, *ask(scene)]
    assert "cannot be rendered: no" in refused(cap, messages, ModelError)


def test_a_closed_captioner(fake_engine, scene):
    cap, _ = make(fake_engine())
    cap.close()
    assert "closed" in refused(cap, ask(scene))


# ---- the demo model


def test_real_answers_are_the_captions(demo_captioner):
    caption = demo_captioner.caption(EXAMPLE, "Describe the image.")
    out = demo_captioner.create_chat_completion(ask(EXAMPLE, "Describe the image."))
    assert out["choices"][0]["message"]["content"] == caption.text
    assert out["usage"]["prompt_tokens"] == caption.report.n_prompt
    assert out["usage"]["completion_tokens"] == caption.report.n_decoded
    chunks = demo_captioner.create_chat_completion(ask(EXAMPLE, "Describe the image."), stream=True)
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == caption.text
    assert len(pieces) > 5


def test_real_streams_can_be_left(demo_captioner):
    chunks = demo_captioner.create_chat_completion(ask(EXAMPLE), stream=True)
    next(chunks), next(chunks)
    chunks.close()
    caption = demo_captioner.caption(EXAMPLE)
    assert caption.finish_reason == "stop"


def test_real_answers_follow_a_schema(demo_captioner):
    response_format = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    for stream in (False, True):
        out = demo_captioner.create_chat_completion(
            ask(EXAMPLE), response_format=response_format, stream=stream
        )
        if stream:
            pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in out]
            answer = json.loads("".join(pieces))
        else:
            answer = json.loads(out["choices"][0]["message"]["content"])
        assert set(answer) == {"shape", "n"}
        assert answer["shape"] in ("circle", "square")
        assert isinstance(answer["n"], int)


def test_real_answers_are_any_object(demo_captioner):
    out = demo_captioner.create_chat_completion(
        ask(EXAMPLE), response_format={"type": "json_object"}, max_tokens=200
    )
    content = out["choices"][0]["message"]["content"]
    if out["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(content), dict)
    assert content.startswith("{")


def test_openais_newer_words(fake_engine, scene):
    cap, engine = make(fake_engine())
    parts = [
        {"type": "input_image", "image_url": str(scene)},
        {"type": "input_text", "text": "What is this?"},
    ]
    talk = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "And now?"},
    ]
    plain = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [image(scene), text("What is this?")]},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "And now?"},
    ]
    cap.create_chat_completion(
        talk, max_completion_tokens=7, model="gpt-4o", n=1, logprobs=False, tools=[],
        presence_penalty=0.5, frequency_penalty=-0.25, repeat_penalty=1.1,
    )  # fmt: skip
    cap.create_chat_completion(plain, max_tokens=7)
    new, old = engine.calls
    assert new["prompt"] == old["prompt"]
    assert new["n_predict"] == old["n_predict"] == 7
    names = ("presence_penalty", "frequency_penalty", "repeat_penalty")
    assert [new[name] for name in names] == [0.5, -0.25, 1.1]
    assert [old[name] for name in names] == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"n": 2}, "n=2: one answer is made at a time"),
        ({"n": 0}, "n=0"),
        ({"logprobs": True}, "leave logprobs out"),
        ({"tools": [{"type": "function"}]}, "leave tools out"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "give one of them"),
        ({"stream_options": {"include_usage": True}}, "together with stream=True"),
        ({"repeat_penalty": 0}, "repeat_penalty must be above 0"),
        ({"model": 5}, "expected a name"),
    ],
)
def test_what_one_model_cannot_give(fake_engine, scene, options, says):
    cap, engine = make(fake_engine())
    assert says in refused(cap, ask(scene), **options)
    assert engine.calls == []


def test_usage_at_the_end_of_a_stream(fake_engine, scene):
    cap, _ = make(fake_engine())
    whole = cap.create_chat_completion(ask(scene))
    chunks = list(
        cap.create_chat_completion(ask(scene), stream=True, stream_options={"include_usage": True})
    )
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert all("usage" not in chunk for chunk in chunks[:-1])


def test_base64_without_its_head(fake_engine, scene):
    cap, engine = make(fake_engine())
    bare = base64.b64encode(scene.read_bytes()).decode()
    cap.create_chat_completion(ask(bare))
    np.testing.assert_array_equal(engine.calls[0]["images"][0], load_image(scene))
    damaged = refused(cap, ask(bare[:-7]), ImageError)
    assert len(damaged) < 200
    assert bare[:100] not in damaged
    noise = base64.b64encode(np.random.default_rng(1).bytes(50_000)).decode()
    assert len(refused(cap, ask(noise), ImageError)) < 300
    assert len(refused(cap, ask("no such picture, " * 5000), ImageError)) < 300


def test_tools_that_were_called(fake_engine, scene):
    cap, _ = make(fake_engine())
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert "leave tool_calls out" in refused(cap, [*ask(scene), called])
    assert "developer" in refused(cap, [{"role": ["user"], "content": "a"}])
