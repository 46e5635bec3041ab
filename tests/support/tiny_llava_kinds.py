"""Tiny LLaVA checkpoints with every kind of tokenizer: one config, text models of several kinds."""

import json

from support.tiny_tokenizers import write_tokenizer

SIDE = 2  # image tokens in a row


def write_llava(folder, kind, *, extra_rows=3, stops=None, **options):
    """Writes a LLaVA-1.5-style checkpoint with a kind of tokenizer.

    Args:
        folder: where; made if missing.
        kind: of tiny_tokenizers.KINDS.
        extra_rows: rows of the embedding that no token has, as real checkpoints pad theirs.
        stops: tokens that generation_config.json ends answers at.
        options: of write_tokenizer.

    Returns:
        The TinyTokenizer.
    """
    import torch
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    tokenizer = write_tokenizer(folder, kind, **options)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    ends = {
        f"{name}_token_id": tokenizer.ids.get(settings[f"{name}_token"])
        for name in ("bos", "eos", "pad")
    }
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=14 * SIDE,
        patch_size=14,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=_text_config(kind, tokenizer.n_tokens + extra_rows, ends),
        image_token_index=tokenizer.ids.get("<image>", tokenizer.n_tokens - 1),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=SIDE * SIDE,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    _write_processor(folder)
    if stops:
        ids = [tokenizer.ids[token] for token in stops]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    return tokenizer


def _text_config(kind, vocab_size, ends):
    from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config

    classes = {"mistral": MistralConfig, "gemma": Gemma3TextConfig}
    classes |= dict.fromkeys(("qwen2_llava", "qwen2_vl", "internvl"), Qwen2Config)
    sizes = {} if kind.startswith(("qwen", "internvl")) else {"head_dim": 16}
    return classes.get(kind, LlamaConfig)(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        **sizes,
        **ends,
    )


def _write_processor(folder):
    size = {"height": 14 * SIDE, "width": 14 * SIDE}
    image_processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": 14 * SIDE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "image_token": "<image>",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor))
    (folder / "processor_config.json").write_text(json.dumps(processor))
