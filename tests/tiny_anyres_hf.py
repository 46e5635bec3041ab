"""Tiny random LLaVA-NeXT and LLaVA-OneVision checkpoints as Hugging Face writes them.

Images become tiles of 56 pixels and 4 x 4 image tokens; the language models are a llama with the
demo's tokenizer, and a qwen2.
"""

import shutil
from pathlib import Path

from tiny_anyres import PINPOINTS, SIDE
from tiny_tokenizers import write_tokenizer

DEMO_HF = Path(__file__).parent / "data" / "demo_hf"
MANY = [[SIDE * y, SIDE * x] for y in range(1, 5) for x in range(1, 5)]
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
_VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 14,
}
HALF = [0.5, 0.5, 0.5]


def write_anyres_checkpoint(family, folder, seed=0):
    """Writes the folder of "next" or "onevision".

    Returns:
        The model in F32 and its processor, with Pillow as its backend.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    model, processor = {"next": _next, "onevision": _onevision}[family](folder, seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.uniform_(0.5, 1.5)
            elif weight.ndim == 1:
                weight.normal_(std=1.0 if "newline" in name else 0.2)
            elif "embed_tokens" in name or "position" in name:
                weight.normal_()
            else:
                gain = 1.6 if "q_proj" in name or "k_proj" in name else 1.0
                weight.normal_(std=gain * weight[0].numel() ** -0.5)
    model.eval().save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    return model, processor


def _next(folder, seed):
    from transformers import (
        AutoTokenizer,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessorPil,
        LlavaNextProcessor,
    )

    for path in DEMO_HF.glob("token*"):
        shutil.copy(path, folder)
    pinpoints = [list(pinpoint) for pinpoint in PINPOINTS]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 479}
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**_VISION),
        text_config=LlamaConfig(vocab_size=480, **ids, **_TEXT),
        image_token_index=478,
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=pinpoints,
    )
    processor = LlavaNextProcessor(
        images,
        AutoTokenizer.from_pretrained(folder),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(DEMO_HF / "chat_template.jinja").read_text(),
    )
    return _seeded(LlavaNextForConditionalGeneration, config, seed), processor


def _onevision(folder, seed):
    from transformers import (
        AutoTokenizer,
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessorPil,
        LlavaOnevisionProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    tokens = write_tokenizer(folder, "qwen2_llava")
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(vision_use_head=False, **_VISION),
        text_config=Qwen2Config(vocab_size=tokens.n_tokens, **_TEXT),
        image_token_index=tokens.ids["<image>"],
        video_token_index=tokens.ids["<video>"],
        image_grid_pinpoints=MANY,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
        tie_word_embeddings=False,
    )
    images = LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=MANY,
        image_mean=HALF,
        image_std=HALF,
    )

    class Images(LlavaOnevisionProcessor):
        """Without videos, whose processor needs torchvision."""

        def check_argument_for_proper_class(self, argument_name, argument):
            if argument_name == "video_processor":
                return type(None)
            return super().check_argument_for_proper_class(argument_name, argument)

    processor = Images(
        images,
        AutoTokenizer.from_pretrained(folder),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
        chat_template=(folder / "chat_template.jinja").read_text(),
    )
    return _seeded(LlavaOnevisionForConditionalGeneration, config, seed), processor


def _seeded(kind, config, seed):
    import torch

    torch.manual_seed(seed)
    return kind._from_config(config, attn_implementation="eager")
