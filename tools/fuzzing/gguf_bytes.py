"""A GGUF file in pieces that can be changed one by one and put together again."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field

FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
EDGES = [0, 1, 2, 3, 7, 31, 33, 64, 255, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
EDGES += [2**33, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
FLOATS = [0.0, -0.0, 1e-45, -1.0, 1e38, float("inf"), float("-inf"), float("nan")]


@dataclass
class Key:
    """One pair: its name, type and the bytes of its value."""

    name: bytes
    kind: int
    value: bytes


@dataclass
class Tensor:
    """One entry of the table of tensors."""

    name: bytes
    shape: list[int]
    kind: int
    offset: int


@dataclass
class Pieces:
    """A file: keys, tensors, and the bytes of all tensors."""

    keys: list[Key] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    data: bytes = b""


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def take(self, n: int) -> bytes:
        self.at += n
        return self.content[self.at - n : self.at]

    def number(self, form: str) -> int:
        return int(struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0])

    def text(self) -> bytes:
        return self.take(self.number("Q"))

    def value(self, kind: int) -> None:
        if kind == STRING:
            self.text()
        elif kind == ARRAY:
            element, n = self.number("I"), self.number("Q")
            if element in FORMS:
                self.take(n * struct.calcsize("<" + FORMS[element]))
            else:
                for _ in range(n):
                    self.value(element)
        else:
            self.take(struct.calcsize("<" + FORMS[kind]))


def parse(content: bytes) -> Pieces:
    """The pieces of a file that is whole."""
    reader, out = _Reader(content), Pieces()
    reader.take(8)
    n_tensors, n_keys = reader.number("Q"), reader.number("Q")
    for _ in range(n_keys):
        name, kind = reader.text(), reader.number("I")
        start = reader.at
        reader.value(kind)
        out.keys.append(Key(name, kind, content[start : reader.at]))
    for _ in range(n_tensors):
        name = reader.text()
        shape = [reader.number("Q") for _ in range(reader.number("I"))]
        out.tensors.append(Tensor(name, shape, reader.number("I"), reader.number("Q")))
    out.data = content[-(-reader.at // 32) * 32 :]
    return out


def join(pieces: Pieces) -> bytes:
    """A file of these pieces, whatever they say."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(pieces.tensors), len(pieces.keys))]
    for key in pieces.keys:
        parts += [struct.pack("<Q", len(key.name)), key.name, struct.pack("<I", key.kind)]
        parts.append(key.value)
    for t in pieces.tensors:
        parts += [struct.pack("<Q", len(t.name)), t.name, struct.pack("<I", len(t.shape))]
        parts += [struct.pack("<Q", n % 2**64) for n in t.shape]
        parts.append(struct.pack("<IQ", t.kind % 2**32, t.offset % 2**64))
    head = b"".join(parts)
    return head + b"\0" * (-len(head) % 32) + pieces.data


def scalar(rng: random.Random, kind: int) -> bytes:
    """A value of this type at an edge."""
    form = FORMS[kind]
    if form in "fd":
        return struct.pack("<" + form, rng.choice(FLOATS))
    n = struct.calcsize("<" + form)
    return (rng.choice(EDGES) % 2 ** (8 * n)).to_bytes(n, "little")


def extreme_key(rng: random.Random, pieces: Pieces) -> None:
    """One value, of the same type, at an edge."""
    key = rng.choice([k for k in pieces.keys if not k.name.startswith(b"tokenizer.ggml.tok")])
    if key.kind in FORMS:
        key.value = scalar(rng, key.kind)
    elif key.kind == STRING:
        text = rng.choice((b"", b"a" * 3000, b"\xff\xfe", b"a\0b", b"llama", b"mlp", b"clip"))
        key.value = struct.pack("<Q", len(text)) + text
    else:
        element = key.value[:4]
        body = bytearray(key.value[12:])
        if body and rng.random() < 0.7:
            at = rng.randrange(len(body))
            body[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x80"))
            key.value = key.value[:12] + bytes(body[: len(key.value) - 12])
        else:
            key.value = element + struct.pack("<Q", rng.choice((0, *EDGES)))


def other_type(rng: random.Random, pieces: Pieces) -> None:
    """One value of another type."""
    key = rng.choice(pieces.keys)
    key.kind = rng.choice((*FORMS, STRING, ARRAY, 13, 2**32 - 1))
    if key.kind in FORMS:
        key.value = scalar(rng, key.kind)
    elif key.kind == STRING:
        key.value = struct.pack("<Q", 3) + b"abc"
    elif key.kind == ARRAY:
        element = rng.choice((*FORMS, STRING))
        n = rng.choice((0, 1, 3, 65))
        one = struct.pack("<Q", 1) + b"x" if element == STRING else scalar(rng, element)
        key.value = struct.pack("<IQ", element, n) + one * n


def names_of_keys(rng: random.Random, pieces: Pieces) -> None:
    """A key lost, doubled or renamed."""
    at = rng.randrange(len(pieces.keys))
    what = rng.randrange(3)
    if what == 0:
        del pieces.keys[at]
    elif what == 1:
        pieces.keys.append(pieces.keys[at])
    else:
        pieces.keys[at].name = rng.choice((b"", b"x" * 300, rng.choice(pieces.keys).name))


def table_of_tensors(rng: random.Random, pieces: Pieces) -> None:
    """A tensor lost, renamed, moved, of another type or shape."""
    at = rng.randrange(len(pieces.tensors))
    tensor = pieces.tensors[at]
    what = rng.randrange(6)
    if what == 0:
        del pieces.tensors[at]
    elif what == 1:
        tensor.name = rng.choice((b"", b"x" * 63, b"x" * 64, rng.choice(pieces.tensors).name))
    elif what == 2:
        tensor.kind = rng.choice((*range(42), 2**31, 2**32 - 1))
    elif what == 3:
        tensor.offset = rng.choice((*EDGES, tensor.offset + 32, len(pieces.data)))
    elif what == 4:
        axis = rng.randrange(len(tensor.shape))
        tensor.shape[axis] = rng.choice((*EDGES, tensor.shape[axis] * 2, tensor.shape[axis] // 2))
    else:
        tensor.shape = rng.choice(([], tensor.shape[::-1], [*tensor.shape, 1], [1] * 9))


def shapes_swapped(rng: random.Random, pieces: Pieces) -> None:
    """Two tensors trade their entries: what the file says stays possible for a reader."""
    one, two = rng.choice(pieces.tensors), rng.choice(pieces.tensors)
    one.name, two.name = two.name, one.name


def odd_weights(rng: random.Random, pieces: Pieces) -> None:
    """Weights that are no numbers, or too large to multiply."""
    data = bytearray(pieces.data)
    if data:
        at = rng.randrange(len(data)) & ~3
        n = min(len(data) - at, rng.choice((4, 256, 65536)))
        words = (b"\xff\xff\xff\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", rng.randbytes(4))
        data[at : at + n] = (rng.choice(words) * (n // 4 + 1))[:n]
    pieces.data = bytes(data)


STRUCTURED = (
    extreme_key,
    extreme_key,
    extreme_key,
    other_type,
    names_of_keys,
    table_of_tensors,
    table_of_tensors,
    shapes_swapped,
    odd_weights,
)
