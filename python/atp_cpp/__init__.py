"""Image captions from GGUF vision models, with image tokens dropped between the decoder's layers.

import atp_cpp
with atp_cpp.Captioner("llava.gguf", mmproj="mmproj.gguf", policy="fastv:keep=0.25,after=2") as cap:
    caption = cap.caption("cat.jpg", "Describe the image.")
    print(caption.text, caption.report.n_kept)
"""

from atp_cpp._core import __version__
from atp_cpp.caption import Caption
from atp_cpp.captioner import Captioner
from atp_cpp.config import CutSpec, SamplingConfig
from atp_cpp.errors import AtpError, ConvertError, ImageError, ModelError, PlanError, StageError

__all__ = [
    "AtpError",
    "Caption",
    "Captioner",
    "ConvertError",
    "CutSpec",
    "ImageError",
    "ModelError",
    "PlanError",
    "SamplingConfig",
    "StageError",
    "__version__",
]
