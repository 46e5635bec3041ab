"""Do the counts follow the image, and do the kept tokens follow the question? Through the engine.

    python adaptivity.py --questions eval/scene.jsonl --out adaptivity.json
Takes several questions on each of many held-out scenes (make_eval_set.py's fields n_objects and
box are needed) and asks them under ATP's own thresholds. Then the same questions under plans that
keep one count for all: ATP with a budget of the mean that came out, and grid and fastv with the
mean counts after each cut. Writes the figures as JSON and prints them as markdown.
    python adaptivity.py --show adaptivity.json
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atp_cpp.captioner import Captioner
from atp_cpp.evaluation.evaluate import normal_form
from atp_cpp.evaluation.report import provenance
from atp_cpp.images.load import load_image
from atp_cpp.inspect.picture import kept_mask
from atp_cpp.options.plan import SamplingConfig
from atp_cpp.storage.digest import file_sha256

ONE_OBJECT = ("color", "shape", "place")  # kinds that ask about the object of `box` and no other
OWN = "ATP, its own thresholds"
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Seen:
    """One question under one plan: `alive` are the masks [rows, cols] after each cut."""

    question: dict[str, Any]
    correct: bool
    tokens_mean: float
    alive: list[Mask]


def with_others(file: Path) -> list[list[dict[str, Any]]]:
    """The questions of each image, in file order; `others` are the objects they do not ask about.

    The file names only the object a question is about; the others of its image are known from the
    image's other questions.
    """
    of_image: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        of_image[row["image"]].append(row)
    out = []
    for rows in of_image.values():
        boxes = {tuple(row["box"]) for row in rows if row["box"]}
        out.append([{**row, "others": sorted(boxes - {tuple(row["box"] or ())})} for row in rows])
    return out


def choose(file: Path, n_images: int, per_image: int, seed: int) -> list[dict[str, Any]]:
    """Questions to ask: `per_image` of each of the first images, drawn by the seed."""
    rng = random.Random(seed)
    return [
        row
        for rows in with_others(file)[:n_images]
        for row in rng.sample(rows, min(per_image, len(rows)))
    ]


def box_cells(box: Sequence[int], size: tuple[int, int], grid: tuple[int, int]) -> Mask:
    """Patches whose centre lies in a box; the nearest one to its middle if there is none.

    An image of another shape than its grid stands in the grid's middle, as in explain.dimmed.

    Args:
        box: x0, y0, x1, y1 in pixels.
        size: width and height of the image.
        grid: rows and columns.
    """
    (width, height), (rows, cols) = size, grid
    scale = min(cols / width, rows / height)  # patches per pixel
    x = (np.arange(cols) + 0.5 - (cols - width * scale) / 2) / scale  # centres, in pixels
    y = (np.arange(rows) + 0.5 - (rows - height * scale) / 2) / scale
    inside = ((y >= box[1]) & (y < box[3]))[:, None] & ((x >= box[0]) & (x < box[2]))[None, :]
    if not inside.any():
        row = np.abs(y - (box[1] + box[3]) / 2).argmin()
        inside[row, np.abs(x - (box[0] + box[2]) / 2).argmin()] = True
    out: Mask = inside
    return out


def ask(
    captioner: Captioner, questions: list[dict[str, Any]], folder: Path, plan: str
) -> list[Seen]:
    """All questions under one plan (cuts joined by +)."""
    out = []
    for number, row in enumerate(questions, start=1):
        caption = captioner.caption(
            load_image(folder / row["image"]),
            row["question"],
            policy=plan.split("+"),
            sampling=SamplingConfig(n_predict=32),
        )
        report = caption.report
        alive = [kept_mask(report, k) for k in range(len(report.n_kept))]
        right = normal_form(caption.text) == normal_form(row["answer"])
        out.append(Seen(row, right, report.tokens_mean, alive))
        if number % 200 == 0:
            print(f"{plan}: {number} of {len(questions)}", flush=True)
    return out


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0, equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    mean: NDArray[np.float64] = (ends - (counts + 1) / 2)[inverse]
    return mean


def correlation(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Pearson's and Spearman's; 0 where one side does not change."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    both = np.corrcoef(a, b)[0, 1], np.corrcoef(ranks(a), ranks(b))[0, 1]
    return {"pearson": float(both[0]), "spearman": float(both[1])}


def within(x: Sequence[float], y: Sequence[float], kinds: Sequence[str]) -> dict[str, Any]:
    """Correlations within each kind of question, and of all once each kind's means are taken off.

    Kinds differ in how many tokens they need and in which scenes they can be asked about, so a
    correlation over all of them mixes both.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    rest_a, rest_b, by_kind = a.copy(), b.copy(), {}
    for kind in sorted(set(kinds)):
        mine = np.array([k == kind for k in kinds])
        by_kind[kind] = {"n": int(mine.sum()), **correlation(a[mine].tolist(), b[mine].tolist())}
        rest_a[mine] -= a[mine].mean()
        rest_b[mine] -= b[mine].mean()
    return {"all": correlation(rest_a.tolist(), rest_b.tolist()), "by_kind": by_kind}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation and the range."""
    array = np.asarray(values, np.float64)
    return {
        "mean": float(array.mean()),
        "std": float(array.std(ddof=1)) if len(array) > 1 else 0.0,
        "min": float(array.min()),
        "max": float(array.max()),
    }


def counts(seen: list[Seen]) -> dict[str, Any]:
    """How the number of kept tokens changes with image and question."""
    tokens = [one.tokens_mean for one in seen]
    objects = [one.question["n_objects"] for one in seen]
    groups: dict[str, list[Seen]] = defaultdict(list)
    for one in seen:
        groups[one.question["image"]].append(one)
    several = [group for group in groups.values() if len(group) > 1]
    inside = [np.std([one.tokens_mean for one in group], ddof=1) for group in several]
    between = [np.mean([one.tokens_mean for one in group]) for group in several]
    n_cuts = len(seen[0].alive)
    shared = [[_shared(group, k) for group in several] for k in range(n_cuts)]
    by_objects: dict[int, list[float]] = defaultdict(list)
    by_kind: dict[str, list[float]] = defaultdict(list)
    for one in seen:
        by_objects[one.question["n_objects"]].append(one.tokens_mean)
        by_kind[one.question["kind"]].append(one.tokens_mean)
    return {
        "tokens_mean": spread(tokens),
        "kept": [spread([float(one.alive[k].sum()) for one in seen]) for k in range(n_cuts)],
        "objects_tokens": correlation(objects, tokens),
        "objects_tokens_within_kind": within(
            objects, tokens, [one.question["kind"] for one in seen]
        ),
        "objects_kept": [
            correlation(objects, [float(one.alive[k].sum()) for one in seen]) for k in range(n_cuts)
        ],
        "by_objects": {str(n): spread(v) for n, v in sorted(by_objects.items())},
        "by_kind": {kind: spread(v) for kind, v in sorted(by_kind.items())},
        "std_within_image": float(np.mean(inside)),
        "std_between_images": float(np.std(between, ddof=1)) if len(between) > 1 else 0.0,
        "images_whose_count_differs": float(np.mean([value > 0 for value in inside])),
        "overlap_within_image": [float(np.mean(column)) for column in shared],
    }


def _shared(group: list[Seen], cut: int) -> float:
    """Of the tokens that either of two questions keeps, the share that both keep: mean of pairs."""
    pairs = [(a.alive[cut], b.alive[cut]) for a, b in pairwise(group)]
    return float(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs]))


def coverage(seen: list[Seen], size_of: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """Which cells survive each cut: of the asked object, of the others, of the background."""
    n_cuts = len(seen[0].alive)
    shares: dict[str, list[list[float]]] = {
        part: [[] for _ in range(n_cuts)] for part in ("asked", "others", "background")
    }
    for one in seen:
        row = one.question
        if row["kind"] not in ONE_OBJECT or not row["box"]:
            continue
        grid, size = one.alive[0].shape, size_of[row["image"]]
        asked = box_cells(row["box"], size, grid)
        others = np.zeros(grid, np.bool_)
        for box in row["others"]:
            others |= box_cells(box, size, grid)
        others &= ~asked
        for k, alive in enumerate(one.alive):
            shares["asked"][k].append(float(alive[asked].mean()))
            shares["background"][k].append(float(alive[~asked & ~others].mean()))
            if others.any():
                shares["others"][k].append(float(alive[others].mean()))
    return {
        "n": len(shares["asked"][0]),
        **{part: [float(np.mean(v)) for v in columns] for part, columns in shares.items()},
        "any_asked": [float(np.mean([s > 0 for s in v])) for v in shares["asked"]],
        "quarter_asked": [float(np.mean([s >= 0.25 for s in v])) for v in shares["asked"]],
    }


def figures(seen: list[Seen], size_of: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """Everything about one plan."""
    return {
        "n": len(seen),
        "accuracy": float(np.mean([one.correct for one in seen])),
        "counts": counts(seen),
        "coverage": coverage(seen, size_of),
    }


def fixed_plans(own: list[Seen], cuts: Sequence[int]) -> dict[str, str]:
    """Plans with one count for all: what `own` kept on average."""
    mean = round(float(np.mean([one.tokens_mean for one in own])))
    n_tokens = own[0].alive[0].size
    kept = [float(np.mean([one.alive[k].sum() for one in own])) for k in range(len(cuts))]
    out = {"ATP, the same count for all": f"atp:budget={mean}"}
    for policy in ("grid", "fastv"):
        shares = zip(kept, cuts, strict=True)
        out[policy] = "+".join(f"{policy}:keep={n / n_tokens:.5f},after={c}" for n, c in shares)
    return out


def measure(a: argparse.Namespace) -> dict[str, Any]:
    """Asks everything; the content of the JSON file."""
    questions = choose(a.questions, a.images, a.per_image, a.seed)
    folder = a.questions.parent
    size_of = {}
    for name in {row["image"] for row in questions}:
        height, width = load_image(folder / name).shape[:2]
        size_of[name] = (width, height)
    with Captioner(a.model, mmproj=a.mmproj, atp=a.atp, n_threads=a.threads) as captioner:
        if captioner.atp is None:
            raise SystemExit("there is no sidecar; give --atp")
        cuts = list(captioner.info.atp_cuts)
        own = ask(captioner, questions, folder, "atp")
        plans = {OWN: "atp", **fixed_plans(own, cuts)}
        results = {OWN: figures(own, size_of)}
        for label, plan in list(plans.items())[1:]:
            results[label] = figures(ask(captioner, questions, folder, plan), size_of)
        where_from = provenance(
            model=captioner.model.name,
            model_sha256=file_sha256(captioner.model),
            mmproj_sha256=file_sha256(captioner.mmproj),
            atp_sha256=file_sha256(captioner.atp),
            questions_sha256=file_sha256(a.questions),
            n_images=a.images,
            per_image=a.per_image,
            seed=a.seed,
        )
    return {"provenance": where_from, "cuts": cuts, "plans": plans, "results": results}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=Path, metavar="JSONL")
    parser.add_argument("--show", type=Path, metavar="JSON", help="print an earlier result")
    parser.add_argument("-m", "--model", help="default: the demo model")
    parser.add_argument("--mmproj")
    parser.add_argument("--atp")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--per-image", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-t", "--threads", type=int, default=0)
    a = parser.parse_args()
    if a.show is not None:
        print(markdown(json.loads(a.show.read_text(encoding="utf-8"))))
        return
    if a.questions is None or a.out is None:
        parser.error("give --questions and --out, or --show")
    content = measure(a)
    a.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(markdown(content))


def markdown(content: dict[str, Any]) -> str:
    """The figures as tables to read."""
    own = content["results"][OWN]["counts"]
    cuts, results = content["cuts"], content["results"]
    lines = ["| image tokens | mean | standard deviation | least | most |", "|---|" + "---:|" * 4]
    named = [("mean over layers", own["tokens_mean"])]
    named += [(f"after {cut} layers", own["kept"][k]) for k, cut in enumerate(cuts)]
    for name, s in named:
        lines.append(
            f"| {name} | {s['mean']:.1f} | {s['std']:.1f} | {s['min']:.0f} | {s['max']:.0f} |"
        )
    lines += ["", "| objects in the scene | " + " | ".join(own["by_objects"]) + " |"]
    lines.append("|---|" + "---:|" * len(own["by_objects"]))
    means = [f"{s['mean']:.1f}" for s in own["by_objects"].values()]
    lines.append("| mean tokens | " + " | ".join(means) + " |")
    lines += ["", "| kind of question | " + " | ".join(own["by_kind"]) + " |"]
    lines.append("|---|" + "---:|" * len(own["by_kind"]))
    means = [f"{s['mean']:.1f}" for s in own["by_kind"].values()]
    lines.append("| mean tokens | " + " | ".join(means) + " |")
    inside = own["objects_tokens_within_kind"]["by_kind"]
    rhos = [f"{inside[kind]['pearson']:.2f}" for kind in own["by_kind"]]
    lines.append("| Pearson's r of objects and tokens | " + " | ".join(rhos) + " |")
    both, apart = own["objects_tokens"], own["objects_tokens_within_kind"]["all"]
    lines += [
        "",
        f"Correlation of objects and tokens: Pearson {both['pearson']:.2f}, Spearman "
        f"{both['spearman']:.2f}; once each kind of question's own means are taken off, "
        f"Pearson {apart['pearson']:.2f}, Spearman {apart['spearman']:.2f}. Between questions on "
        f"one image: standard deviation "
        f"{own['std_within_image']:.1f} tokens, count differs on "
        f"{100 * own['images_whose_count_differs']:.0f} % of images; between images: "
        f"{own['std_between_images']:.1f}. Kept tokens that two questions on one image share: "
        + ", ".join(f"{100 * share:.0f} %" for share in own["overlap_within_image"])
        + " after the cuts.",
        "",
        "| plan | right | mean tokens | asked object's cells alive | other objects' | background | "
        ">= 1 cell of it | >= a quarter of it |",
        "|---|" + "---:|" * 7,
    ]
    for label, result in results.items():
        cover = result["coverage"]
        parts = [cover[p] for p in ("asked", "others", "background", "any_asked", "quarter_asked")]
        cells = [" / ".join(f"{100 * share:.0f}" for share in part) + " %" for part in parts]
        tokens = result["counts"]["tokens_mean"]["mean"]
        lines.append(
            f"| {label} | {100 * result['accuracy']:.1f} % | {tokens:.1f} | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
