"""A hash of everything that can change a caption: a run reuses no rows with another hash.

Part of the hash: the files' weights, the cuts, how text is drawn, and the options that change how
numbers are rounded (flash attention, types of the caches). Not part of the hash: threads, batch
size, context size, layers on the accelerator, the folders and the names of the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import TypeAlias

from atp_cpp.errors import ModelError
from atp_cpp.options.plan import CutSpec, SamplingConfig, uses_atp

__all__ = ["config_hash", "file_fingerprint"]

# Raise this number when a new version of this package gives the same images other captions: when it
# renders prompts in another way (the chat template itself is in the model) or prepares images in
# another way.
_VERSION = 1

_HEAD = 1 << 24  # bytes at the start of a file: all metadata, also the vocabulary
_PIECE = 1 << 14
_N_PIECES = 512
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")

_Path: TypeAlias = "str | os.PathLike[str]"


def config_hash(
    *,
    model: _Path,
    mmproj: _Path,
    atp: _Path | None,
    plan: Sequence[CutSpec],
    sampling: SamplingConfig,
    flash_attn: str = "auto",
    type_k: str = "f16",
    type_v: str = "f16",
    fingerprint: Callable[[_Path], str] | None = None,
) -> str:
    """The configuration of a run as 16 hex digits.

    Args:
        model: GGUF of the text model.
        mmproj: GGUF of its projector.
        atp: GGUF of the sidecar, if there is one; it is part of the hash if the plan uses it.
        plan: settled cuts, as ``Captioner.settle_plan`` returns them.
        sampling: how text is drawn; see SamplingConfig.facts.
        flash_attn: whether the engine uses flash attention: "auto", "on" or "off".
        type_k: element type of the key cache.
        type_v: element type of the value cache.
        fingerprint: a function: path of a file -> text that changes with the file's content;
            file_fingerprint if not given.

    Raises:
        ModelError: a file cannot be read.
    """
    of = fingerprint or file_fingerprint
    facts = {
        "version": _VERSION,
        "model": of(model),
        "mmproj": of(mmproj),
        "atp": of(atp) if atp is not None and uses_atp(plan) else None,
        "plan": [_cut_key(cut) for cut in plan],
        "sampling": sampling.facts(),
        "flash_attn": flash_attn,
        "type_k": type_k,
        "type_v": type_v,
    }
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def file_fingerprint(path: _Path) -> str:
    """SHA-256 of those parts of a GGUF that tell it from other GGUF files.

    Hashed are the size, the first 16 MiB (all metadata and the tensors' names) and 16 KiB of each
    512th part of the rest. Training and quantising change every part of the tensors they touch.
    The place of a piece in its part is drawn with a fixed seed, so it is always the same. Pieces at
    even distances would meet the same few tensors of each layer, because layers repeat at even
    distances too. A file of up to 24 MiB is read whole. In a larger file, a change of single
    weights can go unseen. Of a split model, all files count.

    Raises:
        ModelError: the file cannot be read.
    """
    digest = hashlib.sha256()
    for part in _parts(Path(path)):
        try:
            _add(digest, part)
        except OSError as error:
            raise ModelError(f"{part}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def _add(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        digest.update(size.to_bytes(8, "little"))
        if size <= _HEAD + _N_PIECES * _PIECE:
            while block := stream.read(1 << 20):
                digest.update(block)
            return
        digest.update(_read(stream, 0, _HEAD))
        for start in places(size):
            digest.update(_read(stream, start, _PIECE))


def places(size: int) -> list[int]:
    """Byte offsets of the pieces of a large file; pieces do not overlap and end inside the file."""
    part = (size - _HEAD) / _N_PIECES
    shifts = random.Random(0)
    return [_HEAD + int(i * part + shifts.random() * (part - _PIECE)) for i in range(_N_PIECES)]


def _read(stream: FileIO, start: int, n_bytes: int) -> bytes:
    stream.seek(start)
    return stream.read(n_bytes) or b""


def _parts(path: Path) -> list[Path]:
    """The files of a model: the file itself, or all parts of NAME-00001-of-00003.gguf."""
    match = _PART.search(path.name)
    if match is None:
        return [path]
    stem, n_parts = path.name[: match.start()], int(match[2])
    return [path.with_name(f"{stem}-{i:05d}-of-{match[2]}.gguf") for i in range(1, n_parts + 1)]


def _cut_key(cut: CutSpec) -> dict[str, object]:
    """What a cut adds to the hash. A function counts by its name; only functions have `needs`."""
    key = {**asdict(cut), "policy": cut.name}
    if cut.name == cut.policy:
        del key["needs"]
    return key
