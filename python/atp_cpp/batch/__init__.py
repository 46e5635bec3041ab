"""Captions of many images: what goes in, who works when, and what comes out.

In the order the data takes: ``source`` names the images, each an :class:`atp_cpp.Item`; ``load``
opens them in threads; ``run`` encodes them and decodes several captions at once, and begins in
``run.many``; ``output`` makes rows and puts them where they go. ``run_key`` says which rows belong
to the same configuration.

``item``, ``heap``, ``parquet`` and ``resume`` only give names that stand in ``atp_cpp`` now.
:class:`atp_cpp.CaptionBatch` is the same for frameworks that bring their own data and processes.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """CaptionBatch was here; it is built on all of this, so it is imported when asked for."""
    if name == "CaptionBatch":
        from atp_cpp.caption_batch import CaptionBatch

        return CaptionBatch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
