"""A tokenizer that transformers cannot load: refused, or converted with a word about it."""

import logging
from types import SimpleNamespace

import pytest

from atp_cpp import ConvertError
from atp_cpp.convert import vocabulary


@pytest.fixture
def unloadable(monkeypatch):
    def fail(_):
        raise ConvertError("transformers cannot load the tokenizer (it needs foo)")

    monkeypatch.setattr(vocabulary, "_tokenizer", fail)


def empty_file():
    return SimpleNamespace(kv_data=[{"tokenizer.ggml.tokens": SimpleNamespace(value=["a"])}])


def test_of_a_checked_family(unloadable, tmp_path):
    with pytest.raises(ConvertError, match="it needs foo"):
        vocabulary.carry(empty_file(), tmp_path, checked=True)


def test_of_another_family(unloadable, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "atp_cpp"):
        vocabulary.carry(empty_file(), tmp_path, checked=False)
    assert "it needs foo); its tokens and prompts are llama.cpp's own, unchecked" in caplog.text


@pytest.mark.torch
def test_both_as_the_converter_does_it(tmp_path):
    import json

    from support.convert_many import refuse_many
    from support.hf_llava import write_llava

    write_llava("llava-1.5", tmp_path / "tiny")
    path = tmp_path / "tiny" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"extra_special_tokens": "x"}))
    (message,) = refuse_many([tmp_path / "tiny"])
    assert message.startswith("transformers cannot load the tokenizer (")
