"""Checkpoint of train.py -> a transformers LLaVA folder (float16), checked logit for logit.

python export_hf.py --checkpoint demo.pt --tokens tokenizer.model --out tests/data/demo_hf
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionConfig,
)

from model import GRID, HEAD_DIM, PATCH, Config, Demo
from tokenizer import BOS, EOS, IMAGE, PAD, after, read

SIZE = GRID * PATCH
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ASSISTANT: ' }}"
    "{% else %}{{ '' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}"
    "{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)


def hf_config(cfg: Config) -> LlavaConfig:
    """The LLaVA configuration of the demo."""
    vision = SiglipVisionConfig(
        hidden_size=cfg.eye_width,
        intermediate_size=cfg.eye_ffn,
        num_hidden_layers=cfg.eye_layers,
        num_attention_heads=cfg.eye_width // HEAD_DIM,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=cfg.eye_eps,
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=cfg.vocab,
        hidden_size=cfg.width,
        intermediate_size=cfg.ffn,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.width // HEAD_DIM,
        num_key_value_heads=cfg.width // HEAD_DIM,
        max_position_embeddings=1024,
        rms_norm_eps=cfg.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_theta},
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_token_id=IMAGE,
        projector_hidden_act="gelu_pytorch_tanh",
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=GRID * GRID,
        tie_word_embeddings=False,
        pad_token_id=PAD,
    )


def hf_state(demo: Demo) -> dict[str, Tensor]:
    """Our parameters under transformers' names; the unused last LayerNorm of the tower is 1, 0."""
    out: dict[str, Tensor] = {}
    eye = "model.vision_tower."
    width = demo.cfg.eye_width
    weight = demo.eye.patch.weight.reshape(width, 3, PATCH, PATCH)
    out[eye + "embeddings.patch_embedding.weight"] = weight
    out[eye + "embeddings.patch_embedding.bias"] = demo.eye.patch.bias
    out[eye + "embeddings.position_embedding.weight"] = demo.eye.pos
    out[eye + "post_layernorm.weight"] = torch.ones(width)
    out[eye + "post_layernorm.bias"] = torch.zeros(width)
    names = {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.out_proj",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
    }
    for key, value in demo.eye.layers.state_dict().items():
        il, part, kind = key.split(".")
        out[f"{eye}encoder.layers.{il}.{names[part]}.{kind}"] = value
    for key, value in demo.projector.state_dict().items():
        out["model.multi_modal_projector." + key.replace("linear", "linear_")] = value
    names = {
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    }
    text = "model.language_model."
    for key, value in demo.decoder.layers.state_dict().items():
        il, part, kind = key.split(".")
        out[f"{text}layers.{il}.{names[part]}.{kind}"] = value
    out[text + "embed_tokens.weight"] = demo.decoder.embed.weight
    out[text + "norm.weight"] = demo.decoder.norm.weight
    out["lm_head.weight"] = demo.decoder.out.weight
    return {k: v.detach().clone().contiguous() for k, v in out.items()}


def hf_tokenizer(tokens: Path) -> LlamaTokenizer:
    """A LlamaTokenizer with the pieces of tokenizer.model, <image> and <pad> after them."""
    model = read(tokens)
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())] + ["<image>", "<pad>"]
    index = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for piece in sorted(pieces[:IMAGE], key=lambda p: -model.get_score(index[p])):
        if model.is_control(index[piece]) or model.is_byte(index[piece]) or len(piece) < 2:
            continue
        pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [(a, b) for a, b in pairs if a in index and b in index]
        merges += sorted(known, key=lambda ab: (index[ab[0]], index[ab[1]]))
    tokenizer = LlamaTokenizer(
        vocab=index,
        merges=merges,
        add_prefix_space=False,
        add_bos_token=True,
        add_eos_token=False,
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=1024,
    )
    if tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) != [IMAGE, PAD]:
        raise SystemExit(f"special ids {tokenizer.convert_tokens_to_ids(['<image>', '<pad>'])}")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def hf_processor(tokenizer: LlamaTokenizer) -> LlavaProcessor:
    """The image processor (bicubic to 336, mean and deviation 0.5) and the tokenizer."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        resample=3,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=0,
    )


@torch.no_grad()
def check(demo: Demo, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> float:
    """Largest difference of the two models' logits on one random image and a question."""
    pixels = torch.rand(1, 3, SIZE, SIZE) * 2 - 1
    ids = processor.tokenizer("USER: <image>" + after("what color is the circle?"))["input_ids"]
    spot = ids.index(IMAGE)
    ids = torch.tensor([ids[:spot] + [IMAGE] * GRID * GRID + ids[spot + 1 :]])
    theirs = model(input_ids=ids, pixel_values=pixels).logits
    rows = demo.decoder.embed(ids)
    rows[:, spot : spot + GRID * GRID] = demo.projector(demo.eye(pixels))
    ours = demo.decoder.out(demo.decoder(rows, torch.arange(ids.shape[1])[None]))
    return float((ours - theirs).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="without it: random weights")
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    torch.manual_seed(0)
    demo = Demo(Config())
    if a.checkpoint:
        demo.load_state_dict(torch.load(a.checkpoint, weights_only=True)["demo"])
    demo.half().float().eval()  # what a float16 file can hold
    model = LlavaForConditionalGeneration(hf_config(demo.cfg)).eval()
    model.load_state_dict(hf_state(demo), strict=True)
    processor = hf_processor(hf_tokenizer(a.tokens))
    print("largest logit difference to transformers:", check(demo, model, processor))
    a.out.mkdir(parents=True, exist_ok=True)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, PAD
    model.half().save_pretrained(a.out)
    processor.save_pretrained(a.out)
    processor.image_processor.save_pretrained(a.out)
    shutil.copy(a.tokens, a.out / "tokenizer.model")


if __name__ == "__main__":
    main()
