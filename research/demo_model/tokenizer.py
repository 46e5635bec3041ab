r"""The demo's tokenizer: a small SentencePiece BPE with byte fallback, trained on our own words.

    python tokenizer.py --data DATA --out DIR      writes DIR/tokenizer.model
No prefix space and no whitespace clean-up, so that a prompt cut at the image into two texts gives
the same tokens as the whole: "USER: " | image | "\n{question} ASSISTANT:" and " {answer}".
`<image>` and `<pad>` follow the SentencePiece ids, as in the llava-hf checkpoints.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import sentencepiece as spm

from easy_vqa_data import COLORS, SHAPES, load, sources
from questions import CAPTION, ask
from scenes import compose, scene_rng

PIECES = 478
IMAGE, PAD = PIECES, PIECES + 1
BOS, EOS = 1, 2
BEFORE = "USER: "
MORE = (  # words that people may well type
    "What is in this image?",
    "Describe this picture.",
    "What do you see? I see a small shape and a large one.",
    "Which color has the shape on the left, on the right, at the top, at the bottom?",
    "Please answer in one word. How big is it? one two three four five six 0 1 2 3 4 5 6 7 8 9",
    "The quick brown fox jumps over the lazy dog, and the five boxing wizards jump quickly!",
)


def after(question: str, newline: bool = True) -> str:
    """The text between the image and the answer."""
    return f"{chr(10) if newline else ''}{question} ASSISTANT:"


def corpus(data: Path) -> list[str]:
    """Training lines: every wording, plain and with a capital, with its answer."""
    lines: list[str] = []
    images = load(data, "train")
    for image in images[:600]:
        lines += [f"USER: {q} ASSISTANT: {a}" for q, a in image.questions]
    cutouts = sources(images)
    for index in range(400):
        rng = scene_rng("train", index)
        scene = compose(rng, cutouts, n_things=1 + index % 6)
        lines += [f"USER: {q.question} ASSISTANT: {q.answer}" for q in ask(scene, rng)]
    lines += [f"USER: {CAPTION} ASSISTANT: a {c} {s}" for c in COLORS for s in SHAPES] * 20
    big = [line.replace("USER: ", "")[0].upper() + line.replace("USER: ", "")[1:] for line in lines]
    rng = np.random.default_rng(0)
    keep = rng.permutation(len(big))[: len(big) // 3]
    return lines + [big[i] for i in keep] + list(MORE) * 3


def train(data: Path, out: Path) -> Path:
    """Writes out/tokenizer.model."""
    spm.SentencePieceTrainer.Train(
        sentence_iterator=iter(corpus(data)),
        model_prefix=str(out / "tokenizer"),
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        character_coverage=1.0,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return out / "tokenizer.model"


def read(path: Path) -> spm.SentencePieceProcessor:
    return spm.SentencePieceProcessor(model_file=str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    tokens = read(train(a.data, a.out))
    for text in (BEFORE, after("what color is the circle?"), after("Describe the image."), " red"):
        print(repr(text), tokens.encode(text, out_type=str))


if __name__ == "__main__":
    main()
