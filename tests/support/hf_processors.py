"""Processors of the families without torchvision, which transformers wants for videos alone."""

import importlib
import json

# family of hf_models -> modules and classes of processor and image processor, and what the
# checkpoint's processor_config.json would say
_PROCESSORS = {
    "qwen2_vl": ("qwen2_vl.Qwen2VLProcessor", "qwen2_vl.Qwen2VLImageProcessorPil", {}),
    "qwen2_5_vl": ("qwen2_5_vl.Qwen2_5_VLProcessor", "qwen2_vl.Qwen2VLImageProcessorPil", {}),
    "qwen3_vl": ("qwen3_vl.Qwen3VLProcessor", "qwen2_vl.Qwen2VLImageProcessorPil", {}),
    "gemma3": (
        "gemma3.Gemma3Processor",
        "gemma3.Gemma3ImageProcessorPil",
        {"image_seq_length": 16},
    ),
    "smolvlm": (
        "smolvlm.SmolVLMProcessor",
        "smolvlm.SmolVLMImageProcessorPil",
        {"image_seq_len": 16},
    ),
    "internvl": (
        "internvl.InternVLProcessor",
        "got_ocr2.GotOcr2ImageProcessorPil",
        {"image_seq_length": 16},
    ),
}
_PROCESSORS["internvl_hf"] = _PROCESSORS["internvl"]
FAMILIES = tuple(_PROCESSORS)
IMAGE_TOKENS = {"gemma3": "<image_soft_token>", "smolvlm": "<image>"}
IMAGE_TOKENS |= dict.fromkeys(("internvl", "internvl_hf"), "<IMG_CONTEXT>")


class NoVideos:
    """Stands in for a video processor; nothing is asked of it but this."""

    num_frames = None
    fps = None


def load_processor(family, folder):
    """The family's processor for images and text.

    Args:
        family: one of FAMILIES.
        folder: a checkpoint of tests/support/hf_models.py.
    """
    from transformers import AutoTokenizer

    processor_class, image_class, sizes = _PROCESSORS[family]
    module, upstream = _member("processing_", processor_class)
    if hasattr(module, "num2words"):
        module.num2words = str  # counts the frames of a video
    _, images = _member("image_processing_pil_", image_class)

    class WithoutVideos(upstream):
        def check_argument_for_proper_class(self, argument_name, argument):
            return None

    settings = json.loads((folder / "preprocessor_config.json").read_text())
    del settings["image_processor_type"]
    parts = {
        "image_processor": images(**settings),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "chat_template": (folder / "chat_template.jinja").read_text(),
        **sizes,
    }
    if family != "gemma3":
        parts["video_processor"] = NoVideos()
    return WithoutVideos(**parts)


def _member(prefix, path):
    folder, name = path.split(".")
    module = importlib.import_module(f"transformers.models.{folder}.{prefix}{folder}")
    return module, getattr(module, name)
