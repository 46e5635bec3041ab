"""Sidecar files: what is written is read back, and what breaks a rule is refused by name."""

import errno
import math
import re
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from atp_cpp import _core as core
from atp_cpp.sidecar.sidecar import AtpSidecar
from support.sidecar_files import ARR, F32, I32, STR, U32, encode, example, keys_of, tensors_of

DOCS = Path(__file__).resolve().parents[2] / "docs" / "design" / "sidecar.md"

OTHERS = {
    "as it is": {},
    "one cut": {"cuts": (2,), "kept": (1.0,)},
    "other words": {
        "score_norm": "minmax",
        "divisor": "rows_all",
        "score": "cross",
        "rule": "spatial",
        "activation": "identity",
        "mode": "lora",
    },
    "nothing said": {"data": "", "score_norm": "none", "score": "self", "rule": "redundant"},
    "smallest": {"n_bins": 2, "n_hidden": 1, "strides": (1,), "grid": (1, 1), "budget": 1e-3},
    "the sizes we train": {"n_bins": 64, "n_hidden": 64, "mode": "full", "activation": "relu"},
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_folder_and_file_hold_the_same_to_the_bit(tmp_path, changes):
    sidecar = example(**changes)
    folder = sidecar.save_dir(tmp_path / "trained" / "atp")
    from_folder = AtpSidecar.load_dir(folder)
    path = from_folder.write_gguf(tmp_path / sidecar.file_name)
    assert from_folder == sidecar
    assert AtpSidecar.read_gguf(path) == sidecar
    assert sorted(p.name for p in tmp_path.iterdir()) == [sidecar.file_name, "trained"]


def test_the_engine_sees_every_field(tmp_path):
    sidecar = example()
    weights = core.load_sidecar(str(sidecar.write_gguf(tmp_path / "a.gguf")))
    for field, value in sidecar.metadata().items():
        got = [m.after for m in weights.modules] if field == "cuts" else getattr(weights, field)
        assert (tuple(got) if isinstance(value, tuple) else got) == value, field
    for module in weights.modules:
        prefix = f"blk.{module.after - 1}.atp_"
        for ours, theirs in (
            (module.proj_w, "proj.weight"),
            (module.proj_b, "proj.bias"),
            (module.theta_r_w[None], "theta_r.weight"),
            (module.theta_s_w[None], "theta_s.weight"),
            (np.float32([module.theta_r_b]), "theta_r.bias"),
            (np.float32([module.theta_s_b]), "theta_s.bias"),
        ):
            np.testing.assert_array_equal(ours, sidecar.tensors[prefix + theirs], strict=True)


def test_the_file_is_what_the_schema_says(tmp_path):
    """Keys, their types and the tensors, read with the gguf package and not with our reader."""
    sidecar = example()
    reader = gguf.GGUFReader(sidecar.write_gguf(tmp_path / "a.gguf"))
    stored = {
        key: (int(f.types[0]), f.contents())
        if f.types[0] != ARR
        else (ARR, (int(f.types[1]), f.contents()))
        for key, f in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    assert stored == keys_of(sidecar)
    assert {t.name: tuple(map(int, t.shape)) for t in reader.tensors} == {
        name: ne for name, (ne, _, _) in tensors_of(sidecar).items()
    }
    # and the other way round: a file we put together from the schema is taken
    path = tmp_path / "b.gguf"
    path.write_bytes(encode(keys_of(sidecar), tensors_of(sidecar)))
    assert AtpSidecar.read_gguf(path) == sidecar


def test_the_docs_name_every_key_and_tensor():
    """docs/design/sidecar.md has a row for each, with the type it has in the file."""
    types = {
        STR: "str",
        U32: "u32",
        F32: "f32",
        (ARR, I32): "array of i32",
        (ARR, F32): "array of f32",
    }
    stored = {
        key: types[kind if kind != ARR else (ARR, value[0])]
        for key, (kind, value) in keys_of(example()).items()
    }
    rows = re.findall(
        r"^\| `([^`]+)` \| ([^|]+) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE
    )
    documented = {key: kind for key, kind in rows if "<il>" not in key}
    assert documented == stored
    parts = {key.replace("<il>", "0") for key, _ in rows if "<il>" in key}
    assert parts == {name for name in tensors_of(example()) if name.startswith("blk.0.")}


def test_numbers_are_what_the_file_can_hold():
    sidecar = example(
        budget=0.1, kept=[0.7, 0.1], lambda_sample=np.float64(0.1), cuts=np.array([1, 3])
    )
    assert (sidecar.budget, sidecar.lambda_sample) == (float(np.float32(0.1)),) * 2
    assert sidecar.kept == (float(np.float32(0.7)), float(np.float32(0.1)))
    assert sidecar.cuts == (1, 3) and type(sidecar.cuts[0]) is int
    sidecar.validate()


def test_equality_sees_every_bit():
    sidecar = example()
    other = {name: a.copy() for name, a in sidecar.tensors.items()}
    assert replace(sidecar, tensors=other) == sidecar
    other["blk.0.atp_theta_r.bias"][0] = -0.0
    zero = {**sidecar.tensors, "blk.0.atp_theta_r.bias": np.zeros(1, np.float32)}
    assert replace(sidecar, tensors=other) != replace(sidecar, tensors=zero)
    assert replace(sidecar, data="else") != sidecar
    assert sidecar != "a sidecar"


def test_file_name():
    assert example(base_name="LLaVA 1.5 / 7B").file_name == "atp-LLaVA-1.5-7B-f32.gguf"
    assert example(base_name="atp-demo").file_name == "atp-atp-demo-f32.gguf"


def test_writing_leaves_nothing_behind(tmp_path):
    """The old file stays when the new one cannot be written."""
    path = tmp_path / "atp.gguf"
    path.write_bytes(b"old")
    with pytest.raises(core.ModelError, match=r"n_bins .* in 2\.\.4096, got 1"):
        replace(example(), n_bins=1).write_gguf(path)
    with pytest.raises(core.ModelError, match="cannot be written: No such file or directory"):
        example().write_gguf(tmp_path / "nowhere" / "atp.gguf")
    with pytest.raises(core.ModelError, match="cannot be written"):
        example().write_gguf(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["atp.gguf"] and path.read_bytes() == b"old"
    example().write_gguf(path)
    assert AtpSidecar.read_gguf(path) == example()
    assert [p.name for p in tmp_path.iterdir()] == ["atp.gguf"]


@pytest.mark.parametrize(
    ("below", "reason"),
    [("file/atp.gguf", "Not a directory"), ("a" * 300, "File name too long")],
    ids=["a file", "long"],
)
def test_places_where_not_even_the_temporary_file_can_be(tmp_path, below, reason):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(core.ModelError, match=f"cannot be written: {reason}"):
        example().write_gguf(tmp_path / below)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(
        core.ModelError, match=r"a\.gguf: cannot be written: No space left on device"
    ):
        example().write_gguf(tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_folder_keeps_its_sidecar_when_the_new_one_fails(tmp_path, monkeypatch, error):
    def half(stream, **_):
        stream.write(b"PK")
        raise error

    old = example()
    old.save_dir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", half)
        with pytest.raises((core.ModelError, KeyboardInterrupt)):
            replace(old, name="new").save_dir(tmp_path)
    assert AtpSidecar.load_dir(tmp_path) == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["atp.json", "atp.npz"]
    replace(old, name="new").save_dir(tmp_path)
    assert AtpSidecar.load_dir(tmp_path).name == "new"


WRONG_FIELDS = {
    "cuts": ([1, 2.0], (), (0, 1), (2, 1), (1, 4), "13", (1, True), None),
    "strides": ((), (0,), (3, 2), (4097,), None),
    "n_layer": (1, 513, "4", 4.0, True, None),
    "n_embd": (0, -1, 1 << 21),
    "n_head": (0, "4"),
    "n_bins": (1, 4097, 64.0),
    "n_hidden": (0, 4097),
    "fingerprint": ("", "AB" * 32, "0" * 63, None, 0),
    "grid": ((4,), (4, 0), (4, 4, 4), "ab", None, 4),
    "lambda_sample": (0, -1, math.nan, math.inf, 10**400, "3", None, True),
    "budget": (0, 1.01, -0.5, math.nan, 144, None),
    "kept": ((0.5,), (0.5, 0.6), (1.1, 0.5), (0.5, 0.0), (0.5, math.nan), ("a", "b"), None, 0.5),
    "arch": ("", "x" * 257, None, "a\nb"),
    "name": ("", "\x7f", 3),
    "base_name": ("", "a\0b"),
    "data": (None, "x" * 4097, "two\nlines"),
    "score_norm": ("l2", None, 0),
    "divisor": ("rows", ""),
    "score": ("AVG",),
    "rule": ("union_",),
    "activation": ("gelu",),
    "mode": ("", "all"),
    "tensors": ({}, None, [1]),
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in WRONG_FIELDS.items() for value in values],
)
def test_python_refuses_the_same(tmp_path, field, value):
    wrong = replace(example(), **{field: value})
    for call in (
        wrong.validate,
        lambda: wrong.save_dir(tmp_path),
        lambda: wrong.write_gguf(tmp_path / "a.gguf"),
    ):
        with pytest.raises(
            core.ModelError, match=f"sidecar: .*{'tensor' if field == 'tensors' else field}"
        ):
            call()
    assert not list(tmp_path.iterdir())


WRONG_ARRAYS = {
    "float64": (np.zeros(5), "must be a float32 array, got dtype.'float64'"),
    "a list": ([0.0] * 5, "must be a float32 array, got 'list'"),
    "shape": (np.zeros(4, np.float32), r"must be the shape \(5,\), got \(4,\)"),
    "NaN": (np.full(5, math.nan, np.float32), "must be finite numbers"),
    "big-endian": (np.zeros(5, ">f4"), "must be a float32 array"),
}


@pytest.mark.parametrize(("array", "reason"), WRONG_ARRAYS.values(), ids=WRONG_ARRAYS)
def test_python_refuses_arrays(array, reason):
    tensors = {**example().tensors, "blk.0.atp_proj.bias": array}
    with pytest.raises(core.ModelError, match="blk.0.atp_proj.bias " + reason):
        replace(example(), tensors=tensors).validate()
    with pytest.raises(core.ModelError, match=r"tensor blk.9.x belongs to no cut"):
        replace(example(), tensors=example().tensors | {"blk.9.x": array}).validate()


def test_a_sidecar_too_large_to_be_loaded():
    with pytest.raises(core.ModelError, match="tensors must be at most 16 MiB together, got"):
        example(n_bins=4096, n_hidden=300).validate()


FOLDERS = {
    "no json": (lambda d: (d / "atp.json").unlink(), "atp.json: no such file; expected a folder"),
    "no arrays": (lambda d: (d / "atp.npz").unlink(), "atp.npz: no such file"),
    "no JSON": (lambda d: (d / "atp.json").write_text("{"), "atp.json: not JSON"),
    "a list": (lambda d: (d / "atp.json").write_text("[]"), "expected a JSON object, got list"),
    "deep": (lambda d: (d / "atp.json").write_text("[" * 10**5), "atp.json: not JSON"),
    "version": (lambda d: (d / "atp.json").write_text("{}"), "version must be 1, got None"),
    "too little": (
        lambda d: (d / "atp.json").write_text('{"version": 1}'),
        "lacks activation, arch",
    ),
    "no archive": (
        lambda d: (d / "atp.npz").write_bytes(b"PK\3\4" + bytes(99)),
        "not a NumPy archive",
    ),
    "no arrays in it": (lambda d: (d / "atp.npz").write_bytes(b"x" * 99), "not a NumPy archive"),
    "pickles": (
        lambda d: np.savez(d / "atp.npz", **{"blk.0.atp_proj.bias": np.array([{}])}),
        "not a NumPy archive",
    ),
}


@pytest.mark.parametrize(("spoil", "reason"), FOLDERS.values(), ids=FOLDERS)
def test_folders_that_are_none(tmp_path, spoil, reason):
    folder = example().save_dir(tmp_path / "d")
    spoil(folder)
    with pytest.raises(core.ModelError, match=reason):
        AtpSidecar.load_dir(folder)


def test_a_file_is_no_folder(tmp_path):
    path = example().write_gguf(tmp_path / "atp.gguf")
    with pytest.raises(core.ModelError, match=r"atp.gguf: expected the folder that training wrote"):
        AtpSidecar.load_dir(path)


def test_a_folder_with_a_field_nobody_knows(tmp_path):
    folder = example().save_dir(tmp_path)
    text = (folder / "atp.json").read_text().replace('"version"', '"temperature": 3, "version"')
    (folder / "atp.json").write_text(text)
    with pytest.raises(core.ModelError, match="has temperature which nobody knows"):
        AtpSidecar.load_dir(folder)


def test_a_single_array_is_no_archive(tmp_path):
    folder = example().save_dir(tmp_path)
    with (folder / "atp.npz").open("wb") as stream:
        np.save(stream, np.zeros(3, np.float32))
    with pytest.raises(core.ModelError, match="not a NumPy archive"):
        AtpSidecar.load_dir(folder)
