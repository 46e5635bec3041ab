"""Held-out accuracy per kind in PyTorch: easy-VQA's test questions and scenes of test images.

    python evaluate_torch.py --data DATA --checkpoint demo.pt --tokens tokenizer.model --out X.json
Greedy answers, exact match, all 576 image tokens, bfloat16 (float32 with --full); the scenes are
numbers 0, 1, ... of split 'test'.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch

from batches import Batch, Maker, Words, easy_kind
from easy_vqa_data import EasyImage
from model import Config, Demo
from questions import CAPTION, Asked
from train import exact
from train_eye import easy_scene

EASY_TEXT, SCENE_TEXT = 288, 768  # text rows of an image


def easy_batches(maker: Maker, images: list[EasyImage], size: int) -> Iterator[Batch]:
    """The dataset's test images with their own questions and the caption."""
    every = torch.arange(576).numpy()
    for start in range(0, len(images), size):
        parts = []
        for image in images[start : start + size]:
            asked = [Asked(q, a, easy_kind(q), 0) for q, a in image.questions]
            asked.append(Asked(CAPTION, f"a {image.color} {image.shape}", "caption", 0))
            rows, fitted = maker.pack(asked, None)
            if len(fitted) != len(asked):
                raise SystemExit(f"image {image.index}: {len(asked)} questions do not fit")
            parts.append((easy_scene(image, None), every, rows, fitted))
        yield maker.collate(parts)


def tally(
    demo: Demo, words: Words, batches: Iterator[Batch], *, half: bool
) -> dict[str, dict[str, float]]:
    """Right answers per kind: {kind: {right, asked, accuracy}}; 'all' leaves captions out."""
    right: dict[str, int] = defaultdict(int)
    count: dict[str, int] = defaultdict(int)
    for batch in batches:
        for kind, _, hit in exact(demo, batch, words, half=half):
            for name in (kind,) if kind == "caption" else (kind, "all"):
                right[name] += hit
                count[name] += 1
    return {
        k: {"right": right[k], "asked": count[k], "accuracy": round(right[k] / count[k], 5)}
        for k in sorted(count)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--full", action="store_true", help="float32 instead of bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    demo = Demo(Config())
    demo.load_state_dict(torch.load(a.checkpoint, weights_only=True)["demo"])
    demo.half().float().eval()  # what the shipped float16 files hold
    words = Words(a.tokens)
    maker = Maker(a.data, words, "test", keep=576, text=EASY_TEXT, easy=0.0)
    half = not a.full
    easy = easy_batches(maker, maker.images[: a.images], a.batch)
    result = {"easy_vqa_test": tally(demo, words, easy, half=half)}
    print(json.dumps(result), flush=True)
    maker.text = SCENE_TEXT
    numbers = range(0, a.scenes, a.batch)
    scenes = (maker.batch(list(range(i, min(i + a.batch, a.scenes)))) for i in numbers)
    result["held_out_scenes"] = tally(demo, words, scenes, half=half)
    text = json.dumps(result, indent=2)
    print(text)
    if a.out:
        a.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
