"""A transformers LLaVA folder of export_hf.py -> the two GGUF files that llama.cpp reads.

    python export.py --hf tests/data/demo_hf --out python/atp_cpp/demo
writes atp-demo.gguf (decoder, Q8_0) and mmproj-atp-demo.gguf (eye and projector, F16); with
--outtype f32 both in F32, for comparisons.
Nothing is left to be guessed: the feature layer is named (without it llama.cpp stops one block
early), the tower's last LayerNorm is left out (LLaVA reads before it), no prefix space is added.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

DATA = (
    "easy-VQA (MIT): 4,000 training images and their questions; scenes of one to six shapes cut "
    "out of those images, with generated questions and captions. Trained from scratch."
)
State = dict[str, np.ndarray]
Kind = gguf.GGMLQuantizationType
FTYPES = {
    Kind.F32: gguf.LlamaFileType.ALL_F32,
    Kind.F16: gguf.LlamaFileType.MOSTLY_F16,
    Kind.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
}
# of decoder, eye and projector
OUTTYPES = {"q8_0": (Kind.Q8_0, Kind.F16), "f32": (Kind.F32, Kind.F32)}


def common_keys(writer: gguf.GGUFWriter, name: str, kind: Kind) -> None:
    """Who made the file, of what, under which licence."""
    writer.add_name(name)
    writer.add_basename("atp-demo")
    writer.add_organization("atp_cpp")
    writer.add_description("Small LLaVA-shaped model of coloured shapes. " + DATA)
    writer.add_license("mit")
    writer.add_license_link("https://opensource.org/license/mit")
    writer.add_dataset_name(0, "easy-VQA")
    writer.add_dataset_repo_url(0, "https://github.com/vzhou842/easy-VQA")
    writer.add_dataset_count(1)
    writer.add_languages(["en"])
    writer.add_file_type(FTYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add(writer: gguf.GGUFWriter, name: str, data: np.ndarray, kind: Kind) -> None:
    """One tensor as `kind`; vectors and positions always as F32."""
    data = np.ascontiguousarray(data, np.float32)
    if data.ndim == 1 or name == "v.position_embd.weight":
        kind = Kind.F32
    if kind == Kind.F32:
        writer.add_tensor(name, data)
    elif kind == Kind.F16:
        writer.add_tensor(name, data.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows (width, width) from transformers' half-split rotary layout to llama.cpp's pairs."""
    width = weight.shape[0]
    return weight.reshape(heads, 2, width // heads // 2, -1).swapaxes(1, 2).reshape(width, -1)


def add_vocabulary(writer: gguf.GGUFWriter, hf: Path, size: int) -> None:
    """The SentencePiece pieces, then <image> and <pad>; the chat template."""
    import sentencepiece as spm  # the rest of this file is also used where it is not installed

    model = spm.SentencePieceProcessor(model_file=str(hf / "tokenizer.model"))
    tokens, scores, kinds = [], [], []
    for i in range(model.get_piece_size()):
        kind = gguf.TokenType.NORMAL
        if model.is_unknown(i):
            kind = gguf.TokenType.UNKNOWN
        elif model.is_control(i):
            kind = gguf.TokenType.CONTROL
        elif model.is_byte(i):
            kind = gguf.TokenType.BYTE
        tokens.append(model.id_to_piece(i).encode())
        scores.append(model.get_score(i))
        kinds.append(kind)
    for extra in ("<image>", "<pad>"):
        tokens.append(extra.encode())
        scores.append(-1000.0)
        kinds.append(gguf.TokenType.CONTROL)
    if len(tokens) != size:
        raise SystemExit(f"{len(tokens)} tokens, but the model has {size} rows")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(size - 1)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template((hf / "chat_template.jinja").read_text())


def text_tensors(config: dict, state: State) -> Iterator[tuple[str, np.ndarray]]:
    """The decoder's tensors under llama.cpp's names."""
    text = config["text_config"]
    root = (
        "model.language_model."
        if "model.language_model.norm.weight" in state
        else "language_model.model."
    )
    head = "lm_head.weight" if "lm_head.weight" in state else "language_model.lm_head.weight"
    yield "token_embd.weight", state[root + "embed_tokens.weight"]
    yield "output_norm.weight", state[root + "norm.weight"]
    yield "output.weight", state[head]
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for il in range(text["num_hidden_layers"]):
        for theirs, ours in names.items():
            data = state[f"{root}layers.{il}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):
                data = permute(data, text["num_attention_heads"])
            yield f"blk.{il}.{ours}.weight", data


def write_text(hf: Path, config: dict, state: State, path: Path, kind: Kind) -> None:
    """The decoder."""
    text = config["text_config"]
    heads = text["num_attention_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    common_keys(writer, "ATP demo", kind)
    writer.add_vocab_size(text["vocab_size"])
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_rope_dimension_count(text["hidden_size"] // heads)
    writer.add_rope_freq_base(text["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    add_vocabulary(writer, hf, text["vocab_size"])
    for name, data in text_tensors(config, state):
        add(writer, name, data, kind)
    finish(writer)


def vision_keys(writer: gguf.GGUFWriter, config: dict, images: dict) -> None:
    """Sizes of the eye, the named feature layer, and how pixels are prepared."""
    vision = config["vision_config"]
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_clip_has_vision_encoder(True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_size(vision["image_size"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_block_count(vision["num_hidden_layers"])
    writer.add_vision_head_count(vision["num_attention_heads"])
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_attention_layernorm_eps(vision["layer_norm_eps"])
    writer.add_vision_image_mean(images["image_mean"])
    writer.add_vision_image_std(images["image_std"])
    layer = config["vision_feature_layer"]
    layer = layer if layer >= 0 else vision["num_hidden_layers"] + 1 + layer
    writer.add_array("clip.vision.feature_layer", [layer])


def vision_tensors(config: dict, state: State) -> Iterator[tuple[str, np.ndarray]]:
    """The eye's and the projector's tensors under llama.cpp's names."""
    prefixes = ("model.vision_tower.", "vision_tower.vision_model.", "vision_tower.")
    root = next(p for p in prefixes if p + "embeddings.patch_embedding.weight" in state)
    yield "v.patch_embd.weight", state[root + "embeddings.patch_embedding.weight"]
    yield "v.patch_embd.bias", state[root + "embeddings.patch_embedding.bias"]
    yield "v.position_embd.weight", state[root + "embeddings.position_embedding.weight"]
    names = {
        "layer_norm1": "ln1",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.out_proj": "attn_out",
        "layer_norm2": "ln2",
        "mlp.fc1": "ffn_up",
        "mlp.fc2": "ffn_down",
    }
    for il in range(config["vision_config"]["num_hidden_layers"]):
        for theirs, ours in names.items():
            for part in ("weight", "bias"):
                data = state[f"{root}encoder.layers.{il}.{theirs}.{part}"]
                yield f"v.blk.{il}.{ours}.{part}", data
    project = (
        "model.multi_modal_projector." if root.startswith("model.") else "multi_modal_projector."
    )
    for number, layer in ((0, "linear_1"), (2, "linear_2")):
        for part in ("weight", "bias"):
            yield f"mm.{number}.{part}", state[f"{project}{layer}.{part}"]


def write_mmproj(config: dict, images: dict, state: State, path: Path, kind: Kind) -> None:
    """The eye and the projector."""
    writer = gguf.GGUFWriter(path, "clip")
    common_keys(writer, "ATP demo, eye and projector", kind)
    vision_keys(writer, config, images)
    for name, data in vision_tensors(config, state):
        add(writer, name, data, kind)
    finish(writer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hf", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--names", nargs=2, default=("atp-demo.gguf", "mmproj-atp-demo.gguf"))
    parser.add_argument("--outtype", choices=OUTTYPES, default="q8_0", help="default: %(default)s")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    config = json.loads((a.hf / "config.json").read_text())
    images = json.loads((a.hf / "preprocessor_config.json").read_text())
    state = load_file(a.hf / "model.safetensors")
    text, vision = OUTTYPES[a.outtype]
    write_text(a.hf, config, state, a.out / a.names[0], text)
    write_mmproj(config, images, state, a.out / a.names[1], vision)
    for name in a.names:
        print(a.out / name, f"{(a.out / name).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
