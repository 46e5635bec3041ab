"""A tiny random LLaVA-1.5 checkpoint as Hugging Face writes it: CLIP with its class token, 4 x 4
image tokens, a llama of five layers with grouped heads, the demo's tokenizer."""

import json
import shutil
from pathlib import Path

DEMO_HF = Path(__file__).parents[1] / "data" / "demo_hf"
N_LAYER = 5
SIDE = 4  # image tokens in a row


def write_tiny_llava(folder, *, seed=0, dtype="float32"):
    """Writes the folder; weights large enough that attention differs from token to token."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=14 * SIDE,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=480,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=N_LAYER,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=479,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=478,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=SIDE * SIDE,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.5 if "proj" in name or "fc" in name else 1.0)
            elif "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    copy_processor(folder, 14 * SIDE)
    return folder


def copy_processor(folder, side):
    """The demo's tokenizer, and CLIP's way to prepare images of `side` x `side` pixels."""
    for path in DEMO_HF.iterdir():
        if path.name.startswith(("token", "chat", "pre", "processor")):
            shutil.copy(path, folder)
    size = {"height": side, "width": side}
    for name in ("preprocessor_config.json", "processor_config.json"):
        content = json.loads((folder / name).read_text())
        image = content.get("image_processor", content)
        image.update(crop_size=size, size={"shortest_edge": side})
        if name.startswith("processor"):
            content.update(num_additional_image_tokens=1, vision_feature_select_strategy="default")
        (folder / name).write_text(json.dumps(content))
