"""Keeps the old import path of ``atp_cpp.large_blocks_apart``."""

from atp_cpp.batch.load.heap import large_blocks_apart

__all__ = ["large_blocks_apart"]
