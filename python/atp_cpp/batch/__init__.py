"""Captions of many images: what goes in, who works when, and what comes out.

In the order the data takes: :mod:`inputs` names the images (:mod:`folders`, :mod:`patterns`,
:mod:`lists`, :mod:`tars`, :mod:`shard`), each an :class:`~atp_cpp.batch.item.Item`; :mod:`loading`
opens them in threads. :mod:`encoding` makes jobs of them (:mod:`embeddings` keeps encoded images on
disk), :mod:`schedule` runs several at once in the room that :mod:`room` makes, and :mod:`pipeline`
strings all this together; :mod:`many` is where ``Captioner.caption_many`` begins.

Of what comes out, :mod:`sink` decides where it goes: :mod:`rows_file` (:mod:`resume` reads it back,
:mod:`parquet` makes a table of it) and :mod:`text_files`; :mod:`config_hash` says which rows belong
to the same configuration. :class:`atp_cpp.CaptionBatch` is the same for frameworks that bring
their own data and processes.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """CaptionBatch was here; it is built on all of this, so it is imported when asked for."""
    if name == "CaptionBatch":
        from atp_cpp.caption_batch import CaptionBatch

        return CaptionBatch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
