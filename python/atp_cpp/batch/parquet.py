"""Keeps the old import path of ``atp_cpp.jsonl_to_parquet``."""

from atp_cpp.batch.output.parquet import jsonl_to_parquet

__all__ = ["jsonl_to_parquet"]
