"""What sets the kinds of tiny tokenizers apart: added tokens, special tokens, how text is cut."""

from dataclasses import dataclass

_LLAMA = ("<image>", "<pad>")
_QWEN2 = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN2_VL = (
    *_QWEN2,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_LLAMA3 = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<image>",
    "<pad>",
)
GEMMA_SPACES = ("\n\n", *("▁" * n for n in range(2, 9)))
GEMMA_SIGNS = ("<mask>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>")
SMOL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SMOLVLM = (
    "<global-img>",
    *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)),
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
)

_CASELESS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLIT_QWEN2 = rf"{_CASELESS}{_WORDS}|\p{{N}}{_REST}"
SPLIT_LLAMA3 = rf"{_CASELESS}{_WORDS}|\p{{N}}{{1,3}}{_REST}"

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
BYTE_LEVEL = {**_BYTES, "use_regex": True}
_BYTES_ONLY = {**_BYTES, "use_regex": False}


def split(pattern):
    """The pre-tokenizer that cuts by a pattern and then maps bytes."""
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, _BYTES_ONLY]}


_DIGITS = {"type": "Digits", "individual_digits": True}
PRE_TOKENIZERS = {
    "qwen2": split(SPLIT_QWEN2),
    "llama3": split(SPLIT_LLAMA3),
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, BYTE_LEVEL]},
    "gpt2": BYTE_LEVEL,
}


@dataclass(frozen=True)
class Kind:
    form: str  # how the vocabulary was trained
    added: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str
    tokenizer_class: str
    attributes: dict[str, str]
    unk: str | None = None


_SPM_ENDS = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
KINDS = {
    # llava-1.5
    "llama": Kind(
        "llama", _LLAMA, pad="<pad>", tokenizer_class="LlamaTokenizer", attributes={}, **_SPM_ENDS
    ),
    # llava-v1.6-mistral
    "mistral": Kind(
        "llama", _LLAMA, pad="<pad>", tokenizer_class="LlamaTokenizer", attributes={}, **_SPM_ENDS
    ),
    # llama3-llava-next
    "llama3": Kind(
        "llama3",
        _LLAMA3,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad="<pad>",
        tokenizer_class="PreTrainedTokenizerFast",
        attributes={},
    ),
    # llava-onevision-qwen2, llava-interleave-qwen
    "qwen2_llava": Kind(
        "qwen2",
        (*_QWEN2, "<image>", "<video>"),
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        tokenizer_class="Qwen2Tokenizer",
        attributes={"image_token": "<image>", "video_token": "<video>"},
    ),
    # Qwen2-VL, Qwen2.5-VL, Qwen3-VL
    "qwen2_vl": Kind(
        "qwen2",
        _QWEN2_VL,
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        tokenizer_class="Qwen2Tokenizer",
        attributes={},
    ),
    # InternVL
    "internvl": Kind(
        "qwen2",
        (*_QWEN2, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        tokenizer_class="Qwen2Tokenizer",
        attributes={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    # Gemma 3
    "gemma": Kind(
        "gemma",
        ("<end_of_image>", "<image_soft_token>"),
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        unk="<unk>",
        tokenizer_class="GemmaTokenizer",
        attributes={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    ),
    # SmolVLM
    "smolvlm": Kind(
        "smollm",
        _SMOLVLM,
        bos="<|im_start|>",
        eos="<end_of_utterance>",
        pad="<|im_end|>",
        unk="<|endoftext|>",
        tokenizer_class="GPT2Tokenizer",
        attributes={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
    ),
}
