"""The engine's replies against transformers' on the same questions.

    atp-cpp eval scene.jsonl --compare none --limit 1000 --seed 0 --rows rows.jsonl
    python compare_transformers.py --rows rows.jsonl --images eval --checkpoint tests/data/demo_hf
Greedy, float32, the exported checkpoint; prints how many replies are the same and right.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

MAX_TOKENS = 32  # as atp-cpp eval


def plain(text: str) -> str:
    """An answer without what eval does not count: case, spaces and a period at its ends."""
    return text.strip().removesuffix(".").strip().lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="replies that eval wrote")
    parser.add_argument("--images", type=Path, required=True, help="folder their images lie in")
    parser.add_argument("--checkpoint", type=Path, required=True)
    a = parser.parse_args()
    model = LlavaForConditionalGeneration.from_pretrained(a.checkpoint, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(a.checkpoint)
    asked = same = theirs = ours = 0
    for line in a.rows.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["plan"] != "none" or row["error"]:
            continue
        with Image.open(a.images / row["image"]) as image:
            inputs = processor(
                images=image.convert("RGB"),
                text=f"USER: <image>\n{row['question']} ASSISTANT:",
                return_tensors="pt",
            )
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        reply = plain(processor.batch_decode(new, skip_special_tokens=True)[0])
        asked += 1
        same += reply == plain(row["reply"])
        theirs += reply == plain(row["answer"])
        ours += row["correct"]
    print(f"{asked} questions: {same} same replies; right: transformers {theirs}, engine {ours}")


if __name__ == "__main__":
    main()
