"""Keeps the old import path of ``atp_cpp.read_rows``."""

from atp_cpp.batch.output.resume import read_rows

__all__ = ["read_rows"]
