"""A tokenizer.json in a GGUF file with a random tiny decoder, to ask llama.cpp for its tokens."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from tiny_models import DecoderShape, decoder_metadata, decoder_tensors, write_gguf

_NORMAL, _CONTROL = 1, 3


def write_bpe_gguf(path, content, pre):
    """Writes a byte-level BPE.

    Args:
        path: the GGUF file to write.
        content: what is in tokenizer.json; its added tokens become control tokens.
        pre: llama.cpp's name of the way it cuts text.
    """
    tokens = {i: token for token, i in content["model"]["vocab"].items()}
    types = dict.fromkeys(tokens, _NORMAL)
    for added in content["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], _CONTROL
    n_tokens = max(tokens) + 1
    shape = DecoderShape(arch="llama", n_layer=1, n_embd=64, n_ff=64, n_vocab=max(n_tokens, 512))
    metadata = decoder_metadata(shape)
    for i in range(n_tokens, shape.n_vocab):
        tokens[i], types[i] = f"[PAD{i}]", _CONTROL
    merges = content["model"]["merges"]
    metadata |= {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [tokens[i] for i in range(shape.n_vocab)],
        "tokenizer.ggml.token_type": [types[i] for i in range(shape.n_vocab)],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
        "tokenizer.ggml.add_bos_token": False,
    }
    del metadata["tokenizer.ggml.scores"]
    write_gguf(
        path,
        arch="llama",
        metadata=metadata,
        tensors=decoder_tensors(shape),
        weight_type="f32",
        seed=1,
    )


def trained_across_cuts(texts, pre_tokenizer, *, ignore_merges=False, vocab_size=3000):
    """tokenizer.json of a BPE whose tokens span white space, signs and words alike.

    It is trained without any cut, so that every wrong cut changes the tokens; then it is given
    ``pre_tokenizer``.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    content["pre_tokenizer"] = pre_tokenizer
    content["model"]["ignore_merges"] = ignore_merges
    return content
