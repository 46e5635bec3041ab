"""Held-out pictures and questions as plain files, for programs that know no Python.

    python make_eval_set.py --data DATA --out DIR --scenes 200 --easy 200
writes DIR/images/*.png and DIR/questions.jsonl, one question a line:
    image, question, answer, kind, source ('easy' or 'scene'), n_objects, box ([x0, y0, x1, y1] in
    the image's pixels, of the object that is asked about, or null)
With --examples DIR it writes instead two pictures of the test images, scene.png and easy.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from batches import easy_kind
from easy_vqa_data import EasyImage, load, sources
from questions import CAPTION, Asked, ask, choose
from scenes import compose, scene_rng

EXAMPLE_SCENE = 100_000  # the first scene number tried for examples/scene.png


def line(name: str, item: Asked, source: str, boxes: list[tuple[int, int, int, int]]) -> str:
    """One question as a JSON line."""
    record = {
        "image": f"images/{name}",
        "question": item.question,
        "answer": item.answer,
        "kind": item.kind,
        "source": source,
        "n_objects": len(boxes),
        "box": None if item.thing is None else list(boxes[item.thing]),
    }
    return json.dumps(record)


def easy_lines(images: list[EasyImage], out: Path) -> list[str]:
    """easy-VQA test images as they are (64 x 64), their own questions and the caption."""
    lines = []
    for image in images:
        name = f"easy_{image.index:04d}.png"
        Image.fromarray(image.pixels).save(out / "images" / name)
        asked = [Asked(q, a, easy_kind(q), 0) for q, a in image.questions]
        asked.append(Asked(CAPTION, f"a {image.color} {image.shape}", "caption", 0))
        lines += [line(name, item, "easy", [image.box]) for item in asked]
    return lines


def scene_lines(images: list[EasyImage], out: Path, count: int, per_scene: int) -> list[str]:
    """Scenes 0, 1, ... of split 'test', which evaluate_torch.py scores too."""
    cutouts, lines = sources(images), []
    for index in range(count):
        rng = scene_rng("test", index)
        rng.random()  # the draw that chooses scene or easy-VQA image in training
        scene = compose(rng, cutouts)
        name = f"scene_{index:04d}.png"
        Image.fromarray(scene.pixels).save(out / "images" / name)
        asked = choose(ask(scene, rng), rng, per_scene)
        lines += [line(name, item, "scene", [t.box for t in scene.things]) for item in asked]
    return lines


def examples(images: list[EasyImage], out: Path) -> None:
    """A scene of four different objects, and an enlarged test image."""
    cutouts, index = sources(images), EXAMPLE_SCENE
    while True:
        rng = scene_rng("test", index)
        scene = compose(rng, cutouts, n_things=4)
        asked = ask(scene, rng)
        shapes = {t.shape for t in scene.things}
        colors = {t.color for t in scene.things}
        if len(shapes) == 3 and len(colors) == 4 and any(q.kind == "caption" for q in asked):
            break
        index += 1
    Image.fromarray(scene.pixels).save(out / "scene.png")
    print("scene", index, *(f"{q.question} -> {q.answer}" for q in asked), sep="\n  ")
    image = next(i for i in images if i.shape == "triangle" and i.color == "teal")
    Image.fromarray(image.pixels).resize((336, 336), Image.Resampling.BICUBIC).save(
        out / "easy.png"
    )
    print("easy", image.index, *(f"{q} -> {a}" for q, a in image.questions), sep="\n  ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--examples", type=Path)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--easy", type=int, default=200)
    parser.add_argument("--per-scene", type=int, default=40, help="questions of a scene, at most")
    a = parser.parse_args()
    images = load(a.data, "test")
    if a.examples:
        a.examples.mkdir(parents=True, exist_ok=True)
        examples(images, a.examples)
    if a.out:
        (a.out / "images").mkdir(parents=True, exist_ok=True)
        lines = easy_lines(images[: a.easy], a.out)
        lines += scene_lines(images, a.out, a.scenes, a.per_scene)
        (a.out / "questions.jsonl").write_text("\n".join(lines) + "\n")
        print(len(lines), "questions")


if __name__ == "__main__":
    main()
