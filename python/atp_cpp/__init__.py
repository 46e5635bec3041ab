"""Image captions from GGUF vision models, with image tokens dropped between the decoder's layers.

import atp_cpp
with atp_cpp.Captioner("llava.gguf", mmproj="mmproj.gguf", policy="fastv:keep=0.25,after=2") as cap:
    caption = cap.caption("cat.jpg", "Describe the image.")
    print(caption.text, caption.report.n_kept)

Every name in the documentation is here, except the modules of the program ``atp-cpp``.
"""

from typing import Any

from atp_cpp._core import Cut, ModelInfo, Report, __version__
from atp_cpp.batch.load.heap import large_blocks_apart
from atp_cpp.batch.output.parquet import jsonl_to_parquet
from atp_cpp.batch.output.resume import read_rows
from atp_cpp.batch.output.rows import Row
from atp_cpp.batch.run.pipeline import CaptionRun
from atp_cpp.batch.source.item import Item
from atp_cpp.caption import Caption
from atp_cpp.caption_batch import CaptionBatch
from atp_cpp.captioner import Captioner
from atp_cpp.errors import AtpError, ConvertError, ImageError, ModelError, PlanError, StageError
from atp_cpp.options.plan import CutSpec, SamplingConfig
from atp_cpp.sidecar.fingerprint import fingerprint_from_arrays, fingerprint_from_gguf
from atp_cpp.sidecar.sidecar import AtpSidecar, tensor_shapes

__all__ = [
    "AtpError",
    "AtpSidecar",
    "Caption",
    "CaptionBatch",
    "CaptionRun",
    "Captioner",
    "ConvertError",
    "Cut",
    "CutSpec",
    "ImageError",
    "Item",
    "ModelError",
    "ModelInfo",
    "PlanError",
    "Report",
    "Row",
    "SamplingConfig",
    "StageError",
    "__version__",
    "convert_hf",
    "fingerprint_from_arrays",
    "fingerprint_from_gguf",
    "jsonl_to_parquet",
    "large_blocks_apart",
    "read_rows",
    "tensor_shapes",
]


def __getattr__(name: str) -> Any:
    """Imports convert_hf, and with it the converter, on first use."""
    if name == "convert_hf":
        from atp_cpp.convert import convert_hf

        return convert_hf
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
