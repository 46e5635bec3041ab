"""Keeps the old import path of ``atp_cpp.Item``."""

from atp_cpp.batch.source.item import Item

__all__ = ["Item"]
