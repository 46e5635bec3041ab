"""The tokens of converted files are those of Hugging Face's tokenizers and processors."""

import json

import pytest

import tiny_tokenizers

pytestmark = pytest.mark.torch

MODEL_TYPES = {
    "llama": "llava",
    "mistral": "llava_next",
    "llama3": "llava_next",
    "qwen2_llava": "llava_onevision",
    "qwen2_vl": "qwen2_vl",
    "internvl": "internvl",
    "gemma": "gemma3",
    "smolvlm": "smolvlm",
}
QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]


def load(folder, kind):
    """The tokenizer as transformers sees it in a checkpoint of its family."""
    from transformers import AutoTokenizer

    (folder / "config.json").write_text(json.dumps({"model_type": MODEL_TYPES[kind]}))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
def test_a_tiny_tokenizer_is_always_the_same_and_loads(kind, tmp_path):
    first = tiny_tokenizers.write_tokenizer(tmp_path / "a", kind)
    tiny_tokenizers._trained_spm.cache_clear()
    tiny_tokenizers._trained_bpe.cache_clear()
    tiny_tokenizers.write_tokenizer(tmp_path / "b", kind)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    tokenizer = load(tmp_path / "a", kind)
    assert len(tokenizer) == first.n_tokens
    assert dict(tokenizer.get_vocab()) == first.ids
    for text in tiny_tokenizers.CORPUS:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)).strip() == (
            text.strip()
        )
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    assert "What?" in prompt


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma"])
def test_both_files_of_a_sentencepiece_tokenizer_agree(kind, tmp_path):
    from sentencepiece import SentencePieceProcessor

    tiny_tokenizers.write_tokenizer(tmp_path, kind)
    model = SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    tokenizer = load(tmp_path, kind)
    for text in tiny_tokenizers.CORPUS:
        assert tokenizer.encode(text, add_special_tokens=False) == model.encode(text), text
