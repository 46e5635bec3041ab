"""Files that the fuzzer found: what inspect says of texts and numbers that are none."""

import struct

import pytest

from atp_cpp import ModelError
from atp_cpp.inspect.file import inspect_file
from fuzzing.gguf_bytes import Key, join, parse


def with_key(source, target, name, kind, value):
    pieces = parse(source.read_bytes())
    pieces.keys = [key for key in pieces.keys if key.name != name]
    pieces.keys.append(Key(name, kind, value))
    target.write_bytes(join(pieces))
    return target


@pytest.mark.parametrize("key", [b"general.name", b"tokenizer.chat_template"])
def test_a_text_that_is_none(tiny_model, tmp_path, key):
    content = struct.pack("<Q", 2) + b"\xff\xfe"
    path = with_key(tiny_model("llama"), tmp_path / "x.gguf", key, 8, content)
    with pytest.raises(ModelError, match=r"a text in it is no UTF-8"):
        inspect_file(path, n_threads=1)


def test_a_width_that_is_no_number(tiny_mmproj, tmp_path):
    nan = struct.pack("<f", float("nan"))
    key = b"clip.vision.image_size"
    path = with_key(tiny_mmproj("qwen2vl"), tmp_path / "x.gguf", key, 6, nan)
    assert inspect_file(path).kind
