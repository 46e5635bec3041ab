"""Seeded random models that llama.cpp loads: tiny ones for tests, big shapes for benchmarks."""

from .decoders import DECODER_ARCHS, DecoderShape, decoder_metadata, decoder_tensors
from .gguf_file import WEIGHT_TYPES, write_gguf
from .odd_decoders import ODD_ARCHS
from .vision import (
    LAYOUT_OF_ARCH,
    VISION_LAYOUTS,
    VisionShape,
    vision_metadata,
    vision_tensors,
)

__all__ = [
    "DECODER_ARCHS",
    "LAYOUT_OF_ARCH",
    "ODD_ARCHS",
    "VISION_LAYOUTS",
    "WEIGHT_TYPES",
    "DecoderShape",
    "VisionShape",
    "decoder_metadata",
    "decoder_tensors",
    "vision_metadata",
    "vision_tensors",
    "write_gguf",
]
