"""A file of rows as Parquet: typed columns, for pandas, DuckDB, Spark and similar tools."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

from atp_cpp.batch.output.resume import read_rows
from atp_cpp.batch.output.rows import Row
from atp_cpp.errors import AtpError
from atp_cpp.storage.atomic import replacing

__all__ = ["jsonl_to_parquet"]

_GROUP = 10_000  # rows in memory at once


def jsonl_to_parquet(
    jsonl: str | os.PathLike[str],
    parquet: str | os.PathLike[str],
    *,
    rows_per_group: int = _GROUP,
) -> int:
    """Writes the rows of a JSONL file, the last one of each key, as Parquet.

    The columns are the fields of a row. ``parsed`` is JSON text; it is null where a row has no
    parsed answer. The file gets its name only when it is complete, and replaces an existing file.

    Args:
        jsonl: a file that ``RowsFile`` wrote; it is only read.
        parquet: the file to make.
        rows_per_group: rows in memory at once, and in each row group.

    Returns:
        The number of rows in the new file.

    Raises:
        AtpError: pyarrow is missing, or one of the files cannot be read or written.
    """
    check_pyarrow()
    target = Path(parquet)
    rows = read_rows(jsonl)
    try:
        if target.is_dir():
            raise AtpError(f"{target} is a folder; expected a file's name for Parquet")
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as part:
            return _write(rows, os.fspath(part), rows_per_group)
    except OSError as error:
        raise AtpError(
            f"{target}: cannot be written: {error.strerror or error}; the rows are in "
            f"{os.fspath(jsonl)}; name another file, or make room"
        ) from error


def check_pyarrow() -> None:
    """Checks for pyarrow; call this before a long run.

    Raises:
        AtpError: pyarrow is missing.
    """
    try:
        importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise AtpError(
            f'Parquet needs pyarrow ({error}); pip install "atp_cpp[parquet]"'
        ) from error


def _write(rows: Iterable[Row], path: str, rows_per_group: int) -> int:
    pyarrow: Any = importlib.import_module("pyarrow")
    schema = _schema(pyarrow)
    n_rows = 0
    writer = importlib.import_module("pyarrow.parquet").ParquetWriter(path, schema)
    try:
        for group in _groups(rows, rows_per_group):
            columns = [[_cell(row, name) for row in group] for name in schema.names]
            arrays = [
                pyarrow.array(column, type=kind)
                for column, kind in zip(columns, schema.types, strict=True)
            ]
            writer.write_table(
                pyarrow.Table.from_arrays(arrays, schema=schema), row_group_size=rows_per_group
            )
            n_rows += len(group)
    finally:
        writer.close()
    return n_rows


def _schema(pyarrow: Any) -> Any:
    """Field of a row -> column type."""
    kinds = {
        "str": pyarrow.string(),
        "int": pyarrow.int64(),
        "float": pyarrow.float64(),
        "list[int]": pyarrow.list_(pyarrow.int32()),
        "list[list[float | None]]": pyarrow.list_(pyarrow.list_(pyarrow.float64())),
        "Any": pyarrow.string(),
    }
    return pyarrow.schema([(f.name, kinds[str(f.type)]) for f in fields(Row)])


def _cell(row: Row, name: str) -> Any:
    value = getattr(row, name)
    if name == "parsed":
        return None if value is None else _clean(json.dumps(value, ensure_ascii=False))
    return _clean(value) if isinstance(value, str) else value


def _clean(text: str) -> str:
    """The text as valid UTF-8, which Parquet requires; a file name may hold other bytes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _groups(rows: Iterable[Row], n: int) -> Iterator[list[Row]]:
    stream = iter(rows)
    while group := list(islice(stream, n)):
        yield group
