"""Captions of many images.

The data passes these packages in this order: ``source`` lists the images, each as an
:class:`atp_cpp.Item`; ``load`` opens the images in threads; ``run`` encodes the images and decodes
several captions at once (a run starts in ``run.many``); ``output`` makes rows and writes them.
``run_key`` computes a hash: rows with the same hash belong to the same configuration.

``item``, ``heap``, ``parquet`` and ``resume`` only repeat names that ``atp_cpp`` exports.
:class:`atp_cpp.CaptionBatch` does the same work for frameworks with their own data and processes.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """Keeps the old name of CaptionBatch; imports it on first use, as it imports this package."""
    if name == "CaptionBatch":
        from atp_cpp.caption_batch import CaptionBatch

        return CaptionBatch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
