"""What each part of ATP is worth: the same short training with one part left out, side by side.

    python ablations.py --start HALF --data WATCHED/questions.jsonl --held-out eval/scene.jsonl \
        --out ABLATIONS --steps 60
Every variant starts from the weights of one half-trained run (a folder of `atp-cpp train`), sees
the same samples in the same order for the same number of steps, and aims at the same budget; the
unchanged method continued alike is the control. Then all answer the same held-out questions under
the hard rule, in PyTorch. `fixed ratio` keeps of every question what the control keeps on average
after each cut, without spatial rule. Also counted: the cells of the asked object alive after each
cut (make_eval_set.py's field box), and those of the image's other objects. A variant that has its
result is not run again, one that was stopped goes on from its checkpoint. Writes
OUT/ablations.json and prints the table.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from adaptivity import ONE_OBJECT, Mask, box_cells, with_others
from atp_cpp.evaluation.intervals import difference_text
from atp_cpp.evaluation.report import provenance
from atp_cpp.storage.digest import file_sha256
from atp_cpp.train.checkpoint import FILE_NAME, load_weights
from atp_cpp.train.data import Batches
from atp_cpp.train.insert import Pass
from atp_cpp.train.items import load_items
from atp_cpp.train.loading import WATCHED_QUESTIONS
from atp_cpp.train.losses import exact, mean_tokens
from atp_cpp.train.options import TrainOptions
from atp_cpp.train.prompting import load_processor
from atp_cpp.train.run import Trainer
from atp_cpp.train.step import n_image_tokens, run_batch

CONTROL = "as the demo"
FIXED = "fixed ratio"
VARIANTS: dict[str, dict[str, Any]] = {
    CONTROL: {},
    "average of both scores (the paper's)": {"score": "avg"},
    "self score only": {"score": "self"},
    "without spatial": {"rule": "redundant"},
    "without redundant": {"rule": "spatial"},
    FIXED: {"rule": "redundant"},
}


def folder_name(name: str) -> str:
    """A variant's name as files have it."""
    return "_".join(re.findall(r"\w+", name))


def started_options(a: argparse.Namespace, name: str) -> TrainOptions:
    """The half-trained run's options, shortened, with one part changed."""
    stored = torch.load(a.start / FILE_NAME, map_location="cpu", weights_only=True)["options"]
    known = {f.name for f in fields(TrainOptions)}
    given = {key: value for key, value in stored.items() if key in known}
    for key in ("cuts", "fixed"):
        given[key] = tuple(given.get(key, ()))
    for key in ("model", "data", "out", "image_dir", "watch"):
        given[key] = None if given[key] is None else Path(given[key])
    given |= {"out": a.out / folder_name(name), "steps": a.steps, "minutes": None}
    given |= {key: value for key in ("model", "data") if (value := getattr(a, key)) is not None}
    given |= {"image_dir": None, "watch": a.held_out, "watch_every": 10**9, "save_minutes": 2.0}
    given |= {"temperature": 50.0, "hard": 0.4, "budget_start": 0.0, "warmup": 5, "cooldown": 0.5}
    given |= {"align": 0.0}
    given |= VARIANTS[name]
    return TrainOptions(**given)


def train(a: argparse.Namespace, name: str, shares: tuple[float, ...]) -> Trainer:
    """One variant from the common start to its end."""
    options = started_options(a, name)
    if name == FIXED:
        options = replace(options, fixed=shares)
    resume = (options.out / FILE_NAME).exists()
    trainer = Trainer(options, resume=resume)
    if not resume:
        load_weights(a.start, trainer.trained)
    for row in trainer.steps():
        if row.step % 10 == 0:
            shown = {k: round(row.values[k], 3) for k in ("loss_answers", "mean_tokens", "seconds")}
            print(name, row.step, shown, flush=True)
    trainer.save()
    return trainer


@torch.no_grad()
def ask(trainer: Trainer, held_out: Path, n_images: int) -> dict[str, Any]:
    """Held-out questions under the hard rule: hits, kinds, and counts of image tokens."""
    llava, options = trainer.llava, trainer.options
    items = load_items(held_out)[:n_images]
    processor = load_processor(options.model)
    batches = Batches(
        items,
        processor,
        images_per_batch=options.images_per_batch,
        questions_per_image=WATCHED_QUESTIONS,
        seed=0,
        shuffle=False,
    )
    hits: list[bool] = []
    kinds: list[str] = []
    means: list[torch.Tensor] = []
    counts: list[torch.Tensor] = []
    alive: list[list[Mask]] = []
    n_layer, n_tokens = len(llava.language.layers), n_image_tokens(llava)
    try:
        for batch in batches.once():
            given = batch.to(trainer.device)
            hidden, now, _ = run_batch(
                llava, given, temperature=None, straight=False, options=options
            )
            with torch.autocast(trainer.device.type, torch.bfloat16, options.dtype == "bf16"):
                hits += exact(llava, hidden, now, given.labels).tolist()
            kinds += batch.kinds
            means.append(mean_tokens(now, llava.spec.cuts, n_layer, n_tokens))
            counts.append(torch.stack(now.counts, dim=1))
            first = (given.input_ids == llava.model.config.image_token_id).int().argmax(1)
            alive += masks(now, first, llava.grid)
    finally:
        batches.close()
    mean = torch.cat(means)
    return {
        "n": len(hits),
        "accuracy": sum(hits) / len(hits),
        "mean_tokens": float(mean.mean()),
        "std_tokens": float(mean.std()),
        "kept": (torch.cat(counts).mean(0) / n_tokens).tolist(),
        "hits": "".join(str(int(hit)) for hit in hits),
        "by_kind": {k: _share(hits, kinds, k) for k in sorted(set(kinds))},
        "coverage": coverage(held_out, n_images, alive),
    }


def masks(now: Pass, first: torch.Tensor, grid: tuple[int, int]) -> list[list[Mask]]:
    """Which patches [rows, cols] live after each cut; a sample's image begins at row `first`."""
    out: list[list[Mask]] = [[] for _ in first]
    for index, live in now.alive:
        for sample, (where, here) in enumerate(zip(index, live > 0.5, strict=True)):
            mask = np.zeros(grid[0] * grid[1], np.bool_)
            mask[(where[here] - first[sample]).cpu().numpy()] = True
            out[sample].append(mask.reshape(grid))
    return out


def coverage(held_out: Path, n_images: int, alive: list[list[Mask]]) -> dict[str, list[float]]:
    """Mean share of the asked object's cells, and of the others', that live after each cut."""
    questions = [
        row for rows in with_others(held_out)[:n_images] for row in rows[:WATCHED_QUESTIONS]
    ]
    shares: dict[str, list[list[float]]] = {"asked": [], "others": []}
    for row, masks_of in zip(questions, alive, strict=True):
        if row["kind"] not in ONE_OBJECT or not row["box"]:
            continue
        with Image.open(held_out.parent / row["image"]) as image:
            size = image.size
        asked = box_cells(row["box"], size, masks_of[0].shape)
        others = np.zeros_like(asked)
        for box in row["others"]:
            others |= box_cells(box, size, masks_of[0].shape)
        others &= ~asked
        for name, cells in (("asked", asked), ("others", others)):
            if cells.any():
                shares[name].append([float(mask[cells].mean()) for mask in masks_of])
    return {name: np.mean(v, axis=0).tolist() for name, v in shares.items() if v}


def _share(hits: list[bool], kinds: list[str], kind: str) -> float:
    mine = [hit for hit, k in zip(hits, kinds, strict=True) if k == kind]
    return sum(mine) / len(mine)


def variant(a: argparse.Namespace, name: str, shares: tuple[float, ...]) -> dict[str, Any]:
    """The variant's result, trained and asked unless that was done before."""
    path = a.out / f"{folder_name(name)}.json"
    if path.exists():
        done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return done
    trainer = train(a, name, shares)
    try:
        seconds = trainer.seconds
        result = {**ask(trainer, a.held_out, a.images), "steps": trainer.step, "seconds": seconds}
    finally:
        trainer.close()
    path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return result


def difference(result: dict[str, Any], control: dict[str, Any]) -> tuple[float, float]:
    """(points above the control, their standard error), question by question."""
    pairs = zip(result["hits"], control["hits"], strict=True)
    differences = [int(one) - int(other) for one, other in pairs]
    n = len(differences)
    mean = sum(differences) / n
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / max(1, n - 1))
    return 100 * mean, 100 * spread / math.sqrt(n)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: one line a variant."""
    lines = [
        "| variant | right | points against the demo's [95 %] | mean tokens | spread | "
        "asked object's cells alive | other objects' |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, result in results.items():
        gain, error = difference(result, results[CONTROL])
        against = "" if name == CONTROL else difference_text(gain, error)
        cover = [
            " / ".join(f"{100 * share:.0f}" for share in result["coverage"].get(part, [])) + " %"
            for part in ("asked", "others")
        ]
        lines.append(
            f"| {name} | {100 * result['accuracy']:.1f} % | {against} | "
            f"{result['mean_tokens']:.1f} | {result['std_tokens']:.1f} | "
            f"{cover[0]} | {cover[1]} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the variants one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", type=Path, required=True, help="folder of a half-trained run")
    parser.add_argument("--model", type=Path, help="checkpoint that run started from, if moved")
    parser.add_argument("--data", type=Path, help="training questions (default: that run's)")
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument(
        "--images", type=int, default=100, help="held-out images, 10 questions each"
    )
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    a.out.mkdir(parents=True, exist_ok=True)
    where_from = provenance(
        start_sha256=file_sha256(a.start / FILE_NAME),
        held_out=a.held_out.name,
        held_out_sha256=file_sha256(a.held_out),
        torch=torch.__version__,
        steps=a.steps,
        n_images=a.images,
    )
    results: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(
        [CONTROL, *a.only]
    ):  # the control first: fixed ratio needs its shares
        shares = tuple(results[CONTROL]["kept"]) if results else ()
        results[name] = variant(a, name, shares)
        text = json.dumps({"provenance": where_from, "results": results}, indent=1)
        (a.out / "ablations.json").write_text(text + "\n", encoding="utf-8")
        print(table(results), flush=True)


if __name__ == "__main__":
    main()
