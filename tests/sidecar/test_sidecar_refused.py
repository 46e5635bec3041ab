"""Files that break a rule of docs/design/sidecar.md: each is refused by name, none aborts."""

import math
import struct

import numpy as np
import pytest

from atp_cpp import _core as core
from support.sidecar_files import (
    ARR,
    BOOL,
    F32,
    F64,
    I32,
    I64,
    STR,
    U32,
    U64,
    encode,
    example,
    keys_of,
    tensors_of,
)


@pytest.fixture
def load(tmp_path):
    """`load(content)`: the bytes as a file, through the engine's loader."""

    def load(content):
        path = tmp_path / "atp.gguf"
        path.write_bytes(content)
        return core.load_sidecar(str(path))

    return load


def refused(load, content, reason):
    """A ModelError with this reason, in one line that names the file."""
    with pytest.raises(core.ModelError, match=reason) as error:
        load(content)
    assert "atp.gguf" in str(error.value) and "\n" not in str(error.value)


def change(key, kind, value):
    return lambda keys, tensors: keys.__setitem__(key, (kind, value))


def atp(key, kind, value):
    return change("adapter.atp." + key, kind, value)


def tensor(name, ne=None, kind=0, content=None, values=None):
    def apply(keys, tensors):
        old_ne, _, old = tensors[name]
        new = old if content is None else content
        if values is not None:
            new = np.float32(values).tobytes() + old[4 * len(values) :]
        tensors[name] = (old_ne if ne is None else ne, kind, new)

    return apply


def rename(old, new):
    def apply(keys, tensors):
        tensors[new] = tensors.pop(old)

    return apply


MALFORMED = {
    "a model": (
        change("general.type", STR, "model"),
        "not a sidecar: general.type must be 'adapter', got 'model'",
    ),
    "no type": (
        lambda k, t: k.pop("general.type"),
        "not a sidecar: general.type must be 'adapter', got ''",
    ),
    "a LoRA": (
        change("adapter.type", STR, "lora"),
        "adapter.type must be 'atp', got 'lora': another kind",
    ),
    "no adapter type": (lambda k, t: k.pop("adapter.type"), "key adapter.type is missing; convert"),
    "version 0": (
        atp("version", U32, 0),
        "version is 0, this program reads 1; convert the sidecar again",
    ),
    "version 2": (
        atp("version", U32, 2),
        "version is 2, this program reads 1; install a newer atp_cpp",
    ),
    "version 2^32-1": (
        atp("version", U32, 2**32 - 1),
        "version must be 0 to 2147483647, got 4294967295",
    ),
    "version as text": (atp("version", STR, "1"), "version must be stored as u32, got str"),
    "version as i32": (atp("version", I32, 1), "version must be stored as u32, got i32"),
    "two bases": (change("general.base_model.count", U32, 2), "count must be 1 to 1, got 2"),
    "no architecture": (
        change("general.architecture", STR, ""),
        "architecture must be text of 1 to 256 bytes, got ''",
    ),
    "long name": (
        change("general.name", STR, "x" * 257),
        r"general.name must be text of 1 to 256 bytes, got 'x+…' \(257",
    ),
    "no UTF-8": (
        change("general.name", STR, b"a\xff\xc0\x80b"),
        r"without control characters, got 'a\\xff\\xc0\\x80b'",
    ),
    "line end": (atp("training.data", STR, "a\nb"), r"without control characters, got 'a\\x0ab'"),
    "long note": (atp("training.data", STR, "x" * 4097), "training.data must be text of 0 to 4096"),
    "no cuts": (atp("cuts", ARR, (I32, [])), "cuts must have 1 to 64 elements, got 0"),
    "65 cuts": (atp("cuts", ARR, (I32, [1] * 65)), "cuts must have 1 to 64 elements, got 65"),
    "cut 0": (atp("cuts", ARR, (I32, [0, 3])), "cuts must be in 1 to 3, got 0"),
    "cut below 0": (atp("cuts", ARR, (I32, [-1, 3])), "cuts must be in 1 to 3, got -1"),
    "cut at the end": (atp("cuts", ARR, (I32, [1, 4])), "cuts must be in 1 to 3, got 4"),
    "cuts fall": (atp("cuts", ARR, (I32, [3, 1])), "cuts must be ascending, got 1 after 3"),
    "a cut twice": (atp("cuts", ARR, (I32, [1, 1])), "cuts must be ascending, got 1 after 1"),
    "cuts as i64": (
        atp("cuts", ARR, (I64, [1, 3])),
        "cuts must be an array of i32, got one of i64",
    ),
    "cuts as text": (
        atp("cuts", ARR, (STR, ["1", "3"])),
        "cuts must be an array of i32, got one of str",
    ),
    "cuts a number": (atp("cuts", I32, 1), "cuts must be stored as arr, got i32"),
    "another cut": (atp("cuts", ARR, (I32, [2, 3])), "tensor blk.1.atp_proj.weight is missing"),
    "one cut less": (
        lambda k, t: (
            atp("cuts", ARR, (I32, [1]))(k, t),
            atp("training.kept", ARR, (F32, [0.5]))(k, t),
        ),
        "tensor 'blk.2.atp_proj.weight' belongs to no cut",
    ),
    "no layers": (atp("base.n_layer", U32, 0), "n_layer must be 2 to 512, got 0"),
    "many layers": (atp("base.n_layer", U32, 513), "n_layer must be 2 to 512, got 513"),
    "no width": (atp("base.n_embd", U32, 0), "n_embd must be 1 to 1048576, got 0"),
    "huge width": (atp("base.n_embd", U32, 2**31), "n_embd must be 1 to 1048576, got 2147483648"),
    "no heads": (atp("base.n_head", U32, 0), "n_head must be 1 to"),
    "no fingerprint": (
        atp("base.fingerprint", STR, ""),
        "fingerprint must be 64 hex digits, got ''",
    ),
    "a short fingerprint": (
        atp("base.fingerprint", STR, "ab" * 31),
        "fingerprint must be 64 hex digits",
    ),
    "capitals": (
        atp("base.fingerprint", STR, "AB" * 32),
        "fingerprint must be 64 hex digits, got 'ABAB",
    ),
    "one side": (atp("grid", ARR, (I32, [4])), "grid must have 2 to 2 elements, got 1"),
    "no columns": (atp("grid", ARR, (I32, [4, 0])), "grid must be two numbers in 1 to 4096, got 0"),
    "score_norm": (
        atp("score_norm", STR, "l2"),
        "score_norm must be one of none, relative, minmax, got 'l2'",
    ),
    "divisor": (atp("divisor", STR, ""), "divisor must be one of rows_visible, rows_all, got ''"),
    "score": (atp("score", STR, "Avg"), "score must be one of avg, self, cross, got 'Avg'"),
    "rule": (atp("rule", STR, "both"), "rule must be one of union, redundant, spatial, got 'both'"),
    "activation": (
        atp("activation", STR, "gelu"),
        "activation must be one of identity, relu, silu, got 'gelu'",
    ),
    "mode": (
        atp("training.mode", STR, "x"),
        "training.mode must be one of thresholds, full, lora, got 'x'",
    ),
    "no strides": (atp("strides", ARR, (I32, [])), "strides must have 1 to 64 elements, got 0"),
    "stride 0": (atp("strides", ARR, (I32, [0, 2])), "strides must be in 1 to 4096, got 0"),
    "huge stride": (
        atp("strides", ARR, (I32, [2, 2**31 - 1])),
        "strides must be in 1 to 4096, got 2147483647",
    ),
    "strides fall": (
        atp("strides", ARR, (I32, [3, 2])),
        "strides must be ascending, got 2 after 3",
    ),
    "lambda 0": (atp("lambda_sample", F32, 0.0), "lambda_sample must be above 0"),
    "lambda NaN": (
        atp("lambda_sample", F32, math.nan),
        "lambda_sample must be a finite number, got nan",
    ),
    "lambda inf": (
        atp("lambda_sample", F32, math.inf),
        "lambda_sample must be a finite number, got inf",
    ),
    "lambda as f64": (
        atp("lambda_sample", F64, 3.0),
        "lambda_sample must be stored as f32, got f64",
    ),
    "one bin": (atp("n_bins", U32, 1), "n_bins must be 2 to 4096, got 1"),
    "huge bins": (atp("n_bins", U32, 2**31), "n_bins must be 2 to 4096, got 2147483648"),
    "bins as u64": (atp("n_bins", U64, 8), "n_bins must be stored as u32, got u64"),
    "bins as bool": (atp("n_bins", BOOL, True), "n_bins must be stored as u32, got bool"),
    "other bins": (
        atp("n_bins", U32, 9),
        r"proj.weight must have the shape \[18, 5\], got \[16, 5, 1, 1\]",
    ),
    "no hidden": (atp("n_hidden", U32, 0), "n_hidden must be 1 to 4096, got 0"),
    "other hidden": (
        atp("n_hidden", U32, 4096),
        r"proj.weight must have the shape \[16, 4096\], got \[16, 5, 1, 1\]",
    ),
    "no budget": (atp("training.budget", F32, 0.0), r"budget must be in \(0, 1\], got 0"),
    "budget above 1": (atp("training.budget", F32, 1.5), r"budget must be in \(0, 1\], got 1.5"),
    "budget in tokens": (atp("training.budget", U32, 144), "budget must be stored as f32, got u32"),
    "kept too few": (
        atp("training.kept", ARR, (F32, [0.5])),
        "kept must have 2 to 2 elements, got 1",
    ),
    "kept 0": (
        atp("training.kept", ARR, (F32, [0.5, 0.0])),
        "kept must be in .* got 0.0+ after 0.5",
    ),
    "kept rises": (
        atp("training.kept", ARR, (F32, [0.5, 0.6])),
        "kept must be .* and never rise, got 0.6",
    ),
    "kept above 1": (atp("training.kept", ARR, (F32, [1.1, 0.6])), "kept must be in .* got 1.1"),
    "kept NaN": (
        atp("training.kept", ARR, (F32, [0.5, math.nan])),
        "kept must hold finite numbers, got nan",
    ),
    "kept as f64": (
        atp("training.kept", ARR, (F64, [0.5, 0.1])),
        "kept must be an array of f32, got one of f64",
    ),
    "a tensor of another name": (
        rename("blk.2.atp_theta_s.bias", "blk.2.atp_theta_t.bias"),
        "tensor blk.2.atp_theta_s.bias is missing",
    ),
    "a tensor more": (
        lambda k, t: t.__setitem__("blk.0.attn_q.weight.lora_a", ((2,), 0, bytes(8))),
        "tensor 'blk.0.attn_q.weight.lora_a' belongs to no cut",
    ),
    "turned": (
        tensor("blk.0.atp_proj.weight", ne=(5, 16)),
        r"blk.0.atp_proj.weight must have the shape \[16, 5\], got \[5, 16, 1, 1\]",
    ),
    "three axes": (
        tensor("blk.0.atp_proj.weight", ne=(16, 1, 5)),
        r"must have the shape \[16, 5\], got \[16, 1, 5, 1\]",
    ),
    "empty": (
        tensor("blk.2.atp_theta_s.bias", ne=(0,), content=b""),
        r"blk.2.atp_theta_s.bias must have the shape \[1, 1\], got \[0, 1, 1, 1\]",
    ),
    "halves": (
        tensor("blk.2.atp_theta_s.bias", kind=1, content=bytes(2)),
        "blk.2.atp_theta_s.bias must be of type f32, got f16",
    ),
    "whole numbers": (
        tensor("blk.0.atp_theta_r.bias", kind=26),
        "blk.0.atp_theta_r.bias must be of type f32, got i32",
    ),
    "NaN": (
        tensor("blk.0.atp_proj.bias", values=[math.nan]),
        "blk.0.atp_proj.bias holds -?nan; expected finite",
    ),
    "Inf": (
        tensor("blk.2.atp_proj.weight", values=[0, -math.inf]),
        "blk.2.atp_proj.weight holds -inf; expected",
    ),
}


@pytest.mark.parametrize(("apply", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_malformed(load, apply, reason):
    keys, tensors = keys_of(example()), tensors_of(example())
    apply(keys, tensors)
    refused(load, encode(keys, tensors), reason)


@pytest.mark.parametrize("key", keys_of(example()))
def test_a_missing_key(load, key):
    keys = keys_of(example())
    del keys[key]
    reason = "not a sidecar: general.type" if key == "general.type" else f"the key {key} is missing"
    refused(load, encode(keys, tensors_of(example())), reason)


@pytest.mark.parametrize("name", tensors_of(example()))
def test_a_missing_tensor(load, name):
    tensors = tensors_of(example())
    del tensors[name]
    refused(load, encode(keys_of(example()), tensors), f"the tensor {name} is missing")


def test_files_that_no_sidecar_is(load, tmp_path, tiny_model):
    keys, tensors = list(keys_of(example()).items()), list(tensors_of(example()).items())
    whole = encode(keys, tensors)
    refused(load, b"", "holds only 0 bytes; expected a GGUF file")
    refused(load, b"a text\n" * 9, "is not a GGUF file: it starts with other bytes")
    refused(load, encode(keys, tensors, version=9), "damaged GGUF file .*is version 9 but")
    refused(
        load, encode(keys, tensors, n_keys=2**62), f"12 tensors and {2**62} keys; a sidecar has"
    )
    refused(load, encode(keys, tensors, n_tensors=1025), "says it holds 1025 tensors and 26 keys")
    refused(load, encode(keys, tensors, n_tensors=1024), "is a damaged GGUF file")
    refused(
        load, encode([*keys, keys[0]], tensors), "damaged .*duplicate key 'general.architecture'"
    )
    refused(
        load, encode(keys, [*tensors, tensors[0]]), "duplicate tensor name 'blk.0.atp_proj.weight'"
    )
    refused(load, whole[:-60], "cut short inside tensor blk.2.atp_theta_s.weight: it ends at byte")
    refused(load, whole + bytes(16 << 20), "bytes; a sidecar has at most 16777216. Is it the model")
    refused(load, encode([("general.alignment", (U32, 3)), *keys], tensors), "alignment 3 is not a")
    with pytest.raises(
        core.ModelError, match=r"not a sidecar: general.type .* A model goes with -m"
    ):
        core.load_sidecar(str(tiny_model("llama")))
    with pytest.raises(core.ModelError, match=r"is a folder.*atp-cpp convert --atp"):
        core.load_sidecar(str(tmp_path))
    with pytest.raises(
        core.ModelError, match=r"no such file: .*nothing.gguf \(expected a GGUF sidec"
    ):
        core.load_sidecar(str(tmp_path / "nothing.gguf"))


def test_a_string_longer_than_the_file(load):
    whole = encode(keys_of(example()), tensors_of(example()))
    at = whole.index(b"ATP for tiny") - 8
    for length in (2**20, 2**40, 2**63 - 1, 2**64 - 1):
        refused(load, whole[:at] + struct.pack("<Q", length) + whole[at + 8 :], "is a damaged GGUF")
