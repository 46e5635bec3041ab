"""Rows as Parquet: typed columns, the last row of each key, in bounded memory."""

import errno
import json
import os
import sys

import pytest

from atp_cpp.batch.output.parquet import check_pyarrow, jsonl_to_parquet
from atp_cpp.errors import AtpError
from support.made_rows import made_failure, made_row, write_lines

FULL = made_row(
    parsed={"colour": "rot ü", "n": [1, None]},
    n_image_tokens=16,
    n_kept=[8, 4],
    tokens_mean=7.25,
    thresholds=[[0.5, 0.25, None], [0.5, 0.25, -1.0]],
    kv_bytes=2**40,
    seed=2**32 - 1,
)


@pytest.fixture
def parquet():
    return pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def files(tmp_path):
    return tmp_path / "rows.jsonl", tmp_path / "out" / "rows.parquet"


def test_columns_are_typed(parquet, files):
    write_lines(files[0], FULL, made_failure("b.jpg"))
    assert jsonl_to_parquet(*files) == 2
    table = parquet.read_table(files[1])
    assert table.column_names == list(FULL.as_dict())
    types = {
        name: str(kind) for name, kind in zip(table.column_names, table.schema.types, strict=True)
    }
    assert types.pop("n_kept") in ("list<element: int32>", "list<item: int32>")
    assert "double" in types.pop("thresholds")
    integers = {name for name, kind in types.items() if kind == "int64"}
    assert integers == {"n_image_tokens", "kv_bytes", "seed"}
    numbers = {name for name, kind in types.items() if kind == "double"}
    assert numbers == {"tokens_mean", "t_load", "t_encode", "t_prefill", "t_decode"}
    assert {kind for name, kind in types.items() if name not in integers | numbers} == {"string"}

    full, failed = table.to_pylist()
    assert json.loads(full.pop("parsed")) == FULL.parsed
    expected = FULL.as_dict()
    del expected["parsed"]
    assert full == expected
    assert failed == made_failure("b.jpg").as_dict()  # parsed is null


def test_the_last_row_of_a_key_is_the_one(parquet, files):
    write_lines(files[0], made_failure(), made_row("b.jpg"), FULL, made_row("c.jpg").as_line()[:50])
    assert jsonl_to_parquet(*files) == 2
    assert parquet.read_table(files[1])["custom_id"].to_pylist() == ["b.jpg", "a.jpg"]


def test_rows_are_written_group_by_group(parquet, files):
    write_lines(files[0], *(made_row(f"{i}.jpg") for i in range(25)))
    assert jsonl_to_parquet(*files, rows_per_group=10) == 25
    whole = parquet.ParquetFile(files[1])
    sizes = [whole.metadata.row_group(i).num_rows for i in range(whole.num_row_groups)]
    assert sizes == [10, 10, 5]
    names = whole.read(["custom_id"])["custom_id"].to_pylist()
    assert names == [f"{i}.jpg" for i in range(25)]


def test_no_rows_are_a_table_too(parquet, files):
    write_lines(files[0], b"")
    assert jsonl_to_parquet(*files) == 0
    assert parquet.read_table(files[1]).column_names == list(FULL.as_dict())


def test_a_name_that_is_not_utf_8(parquet, files):
    write_lines(files[0], made_row("caf\udce9.jpg", parsed="\udce9"))
    jsonl_to_parquet(*files)
    (row,) = parquet.read_table(files[1]).to_pylist()
    assert row["custom_id"] == "caf\\udce9.jpg"
    assert "udce9" in row["parsed"]


def test_a_file_that_is_there_is_replaced_by_a_whole_one(parquet, files, monkeypatch):
    write_lines(files[0], FULL)
    files[1].parent.mkdir()
    files[1].write_bytes(b"old")

    def replace(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        with pytest.raises(AtpError, match=r"rows\.parquet: cannot be written: No space left on"):
            jsonl_to_parquet(*files)
    assert os.listdir(files[1].parent) == ["rows.parquet"]
    assert files[1].read_bytes() == b"old"
    umask = os.umask(0o027)
    try:
        assert jsonl_to_parquet(*files) == 1
    finally:
        os.umask(umask)
    assert files[1].stat().st_mode & 0o777 == 0o640
    assert os.listdir(files[1].parent) == ["rows.parquet"]


def test_what_cannot_be_read_or_written(parquet, files, tmp_path):
    with pytest.raises(AtpError, match=r"rows\.jsonl: cannot be read"):
        jsonl_to_parquet(*files)
    write_lines(files[0], FULL)
    with pytest.raises(AtpError, match="is a folder; expected a file's name for Parquet"):
        jsonl_to_parquet(files[0], tmp_path)
    files[0].write_bytes(b"my notes\n")
    with pytest.raises(AtpError, match="is no row of captions"):
        jsonl_to_parquet(*files)
    assert not any(name.endswith("part") for name in os.listdir(files[1].parent))


def test_without_pyarrow(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    write_lines(files[0], FULL)
    for call in (check_pyarrow, lambda: jsonl_to_parquet(*files)):
        with pytest.raises(
            AtpError, match=r'Parquet needs pyarrow .*pip install "atp_cpp\[parquet\]"'
        ):
            call()
    assert not files[1].parent.exists()
