"""Damaged sidecars by the thousand, through the engine's loader and through our header reader.

    PYTHONPATH=tests python -m support.sidecar_fuzz FOLDER [--files N] [--seed S]

Every file must load or be a ModelError. What loads must meet the rules that Python states on its
own (atp_cpp.sidecar.rules). Prints one JSON object: how many of each kind loaded and were refused,
the time, and by how many bytes the process grew.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atp_cpp.errors import ModelError
from atp_cpp.models.gguf_header import read_header
from atp_cpp.sidecar.sidecar import AtpSidecar
from support.resident import peak_rss
from support.sidecar_files import ARR, FORMS, STR, U32, encode, example, keys_of, tensors_of

SOURCES = (example(), example(cuts=(2,), kept=(0.4,), n_bins=2, n_hidden=1, strides=(3,), data=""))
FILES = [encode(keys_of(s), tensors_of(s)) for s in SOURCES]
Pair = tuple[str, tuple[int, Any]]
EDGES = [0, 1, 2, 3, 31, 63, 64, 65, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62]
EDGES += [2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]


def flip_bits(rng: random.Random) -> bytes:
    """One to eight bits anywhere."""
    out = bytearray(rng.choice(FILES))
    for _ in range(rng.randint(1, 8)):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def write_bytes(rng: random.Random) -> bytes:
    """A run of other bytes in the head of the file."""
    out = bytearray(rng.choice(FILES))
    at = rng.randrange(min(len(out), 2200))
    n = rng.randint(1, 12)
    out[at : at + n] = rng.choice((rng.randbytes(n), b"\xff" * n, b"\0" * n))
    return bytes(out)


def cut_short(rng: random.Random) -> bytes:
    """The beginning of the file."""
    whole = rng.choice(FILES)
    return whole[: rng.randrange(len(whole))]


def splice(rng: random.Random) -> bytes:
    """A piece taken out, doubled, or put in from another place."""
    out = bytearray(rng.choice(FILES))
    begin = rng.randrange(len(out))
    end = min(len(out), begin + rng.choice((1, 4, 8, 32, 300)))
    other = rng.choice(FILES)
    start = rng.randrange(len(other))
    piece = rng.choice((b"", out[begin:end] * 2, other[start : start + rng.randint(1, 64)]))
    out[begin:end] = piece
    return bytes(out)


def lie_about_counts(rng: random.Random) -> bytes:
    """A number of the header, or any eight bytes that look like a length, made an edge value."""
    out = bytearray(rng.choice(FILES))
    lengths = [8, 16]
    lengths += [
        at
        for at in range(24, min(len(out), 2400) - 8)
        if 0 < int.from_bytes(out[at : at + 8], "little") < 300
    ]
    at = rng.choice(lengths)
    out[at : at + 8] = struct.pack("<Q", rng.choice(EDGES))
    return bytes(out)


def swap_keys(rng: random.Random) -> bytes:
    """Keys lost, renamed, doubled, of another type or with another value; lengths stay true."""
    source = rng.choice(SOURCES)
    keys = list(keys_of(source).items())
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(keys))
        keys[at] = another_pair(rng, keys, *keys[at])
    if rng.random() < 0.3:
        keys.pop(rng.randrange(len(keys)))
    return encode(keys, tensors_of(source))


def another_pair(rng: random.Random, keys: list[Pair], name: str, stored: tuple[int, Any]) -> Pair:
    """In place of this one."""
    return rng.choice(
        (
            lambda: (rng.choice(keys)[0], stored),
            lambda: (name, rng.choice(keys)[1]),
            lambda: (name, any_value(rng)),
            lambda: (name, edge_of(rng, *stored)),
            lambda: ("general.alignment", (U32, rng.choice(EDGES[:13]))),
        )
    )()


def swap_tensors(rng: random.Random) -> bytes:
    """Tensors lost, renamed, doubled, of another type or shape."""
    source = rng.choice(SOURCES)
    tensors = list(tensors_of(source).items())
    at = rng.randrange(len(tensors))
    name, (ne, kind, content) = tensors[at]
    other = rng.choice(tensors)
    tensors[at] = rng.choice(
        (
            lambda: (other[0], (ne, kind, content)),
            lambda: (name, other[1]),
            lambda: (name, (ne, rng.randrange(45), content)),
            lambda: (name, (tuple(rng.choice(EDGES) for _ in ne), kind, content)),
            lambda: (name, ((*ne, *(rng.choice((0, 1, 2)),) * rng.randint(1, 4)), kind, content)),
            lambda: (name, (ne, kind, rng.randbytes(len(content)))),
            lambda: ("x" * rng.choice((0, 63, 64, 300)), (ne, kind, content)),
        )
    )()
    if rng.random() < 0.2:
        tensors.pop(rng.randrange(len(tensors)))
    return encode(keys_of(source), tensors)


def any_value(rng: random.Random) -> tuple[int, Any]:
    """A value of a random type, arrays among them."""
    kind = rng.choice((*FORMS, STR, ARR))
    if kind == ARR:
        element, _ = scalar = any_scalar(rng, rng.choice((*FORMS, STR)))
        return ARR, (element, [scalar[1]] * rng.choice((0, 1, 2, 64, 65, 500)))
    return any_scalar(rng, kind)


def any_scalar(rng: random.Random, kind: int) -> tuple[int, Any]:
    if kind == STR:
        return STR, rng.choice((b"", b"atp", rng.randbytes(rng.randrange(80)), b"a" * 70_000))
    return kind, rng.randbytes(struct.calcsize("<" + FORMS[kind]))


def edge_of(rng: random.Random, kind: int, value: Any) -> tuple[int, Any]:
    """The same type with a value at an edge."""
    if kind == STR:
        return STR, rng.choice(("", "a" * 65, "union", "self", b"\xff\xfe", b"a\0b", "é" * 128))
    if kind == ARR:
        element, values = value
        edges = [rng.choice(EDGES) & 0xFFFFFFFF for _ in values]
        return ARR, (element, [struct.pack("<I", edge) for edge in edges])
    return kind, struct.pack("<I", rng.choice(EDGES) & 0xFFFFFFFF)


KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    flip_bits,
    write_bytes,
    cut_short,
    splice,
    lie_about_counts,
    swap_keys,
    swap_tensors,
)


def run(folder: Path, n_files: int, seed: int) -> dict[str, Any]:
    """Makes and reads the files; raises what is not a ModelError."""
    path = folder / "atp.gguf"
    outcomes: Counter[str] = Counter()
    rng = random.Random(seed)
    for source, content in zip(SOURCES, FILES, strict=True):
        path.write_bytes(content)
        assert AtpSidecar.read_gguf(path) == source
    before = peak_rss()
    start = time.perf_counter()
    for i in range(n_files):
        kind = KINDS[i % len(KINDS)]
        content = kind(rng)
        path.unlink()  # a new file: ext4 writes one that is cut to nothing and closed to the disk
        path.write_bytes(content)
        try:
            sidecar = AtpSidecar.read_gguf(path)
        except ModelError as error:
            if str(path) not in str(error) or "\n" in str(error):
                raise AssertionError(f"not one line with the file's name: {error}") from error
            outcomes[f"{kind.__name__} refused"] += 1
        else:
            sidecar.validate()
            outcomes[f"{kind.__name__} loaded"] += 1
        try:
            read_header(path)
        except ModelError:
            outcomes["header refused"] += 1
    grown = peak_rss() - before
    return {**outcomes, "seconds": time.perf_counter() - start, "grown": grown}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(json.dumps(run(args.folder, args.files, args.seed)))
