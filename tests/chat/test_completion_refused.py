"""Arguments of a chat completion that are of another kind, and long ones."""

import pytest

from atp_cpp import Captioner
from atp_cpp.errors import AtpError


def refused(fake_engine, **options):
    fake_engine()
    cap = Captioner("model.gguf", mmproj="mmproj.gguf")
    with pytest.raises(AtpError) as caught:
        cap.create_chat_completion([{"role": "user", "content": "What?"}], **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stop": 5}, "stop: expected a text or a list of texts, got 5"),
        ({"stop": {"a": 1}}, "stop: expected a text or a list of texts, got {'a': 1}"),
        ({"stop": [5]}, "expected a text, got int"),
        ({"max_tokens": {}}, "max_tokens must be a whole number, got {}"),
        ({"max_completion_tokens": []}, "max_completion_tokens must be a whole number, got []"),
        ({"max_tokens": 2.5}, "max_tokens must be a whole number, got 2.5"),
    ],
)
def test_another_kind(fake_engine, options, says):
    assert says in refused(fake_engine, **options)


@pytest.mark.parametrize("name", ["seed", "temperature", "top_p", "n", "stop", "max_tokens"])
def test_a_message_quotes_little_of_a_long_value(fake_engine, name):
    assert len(refused(fake_engine, **{name: {"url": "x" * 5000}})) < 200
