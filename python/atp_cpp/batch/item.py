"""An earlier place of ``atp_cpp.Item``."""

from atp_cpp.batch.source.item import Item

__all__ = ["Item"]
