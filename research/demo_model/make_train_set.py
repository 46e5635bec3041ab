r"""Pictures and questions to train ATP modules on, as plain files that `atp-cpp train` reads.

    python make_train_set.py --data DATA --out DIR --scenes 5000 --easy 1000 --first 2000000
    python make_train_set.py --data DATA --out WATCH --split eval --scenes 60 --easy 20
writes DIR/images/*.png and DIR/questions.jsonl, with the fields of make_eval_set.py; easy-VQA's
images stay 64 x 64. Scenes and easy-VQA images alternate in their shares, and lines are appended
as pictures come, so that a reader may start on what is there. A second call goes on where the
first one ended.

Split 'train' is made of easy-VQA's training images. Split 'eval', for watching a run, is made of
its test images: other scenes than make_eval_set.py's (split 'test'), and the last easy-VQA
images instead of the first.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from batches import easy_kind
from easy_vqa_data import EasyImage, load, sources
from make_eval_set import line
from questions import CAPTION, Asked, ask, choose
from scenes import SPLITS, compose, scene_rng


def easy_picture(image: EasyImage, split: str, count: int) -> list[Asked]:
    """`count` of an easy-VQA image's own questions and its caption, kinds in turn."""
    asked = [Asked(q, a, easy_kind(q), 0) for q, a in image.questions]
    asked.append(Asked(CAPTION, f"a {image.color} {image.shape}", "caption", 0))
    rng = np.random.default_rng((SPLITS[split], image.index))
    return choose(asked, rng, count)


def schedule(scenes: int, easy: int) -> Iterator[tuple[str, int]]:
    """('scene' or 'easy', its number from 0), both kinds spread evenly."""
    at = [(i / scenes, "scene", i) for i in range(scenes)]
    at += [((i + 0.5) / easy, "easy", i) for i in range(easy)]
    yield from ((kind, number) for _, kind, number in sorted(at))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=("train", "eval"), default="train")
    parser.add_argument("--scenes", type=int, default=5000)
    parser.add_argument("--easy", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    parser.add_argument("--per-image", type=int, default=10, help="questions of an image, at most")
    a = parser.parse_args()
    images = load(a.data, "train" if a.split == "train" else "test")
    picked = images[: a.easy] if a.split == "train" else images[len(images) - a.easy :]
    cutouts = sources(images)
    folder, total = a.out / "images", 0
    folder.mkdir(parents=True, exist_ok=True)
    with (a.out / "questions.jsonl").open("a", encoding="utf-8") as file:
        for kind, number in schedule(a.scenes, len(picked)):
            index = picked[number].index if kind == "easy" else a.first + number
            path = folder / f"{kind}_{index:07d}.png"
            if path.exists():
                continue
            if kind == "easy":
                pixels, boxes = picked[number].pixels, [picked[number].box]
                asked = easy_picture(picked[number], a.split, a.per_image)
            else:
                rng = scene_rng(a.split, index)
                rng.random()  # the draw that chooses scene or easy-VQA image in training
                scene = compose(rng, cutouts)
                asked = choose(ask(scene, rng), rng, a.per_image)
                pixels, boxes = scene.pixels, [t.box for t in scene.things]
            lines = [line(path.name, item, kind, boxes) for item in asked]
            part = path.with_suffix(".part")
            Image.fromarray(pixels).save(part, format="png")
            part.replace(path)
            file.write("".join(text + "\n" for text in lines))
            file.flush()
            total += len(lines)
    print(total, "questions")


if __name__ == "__main__":
    main()
