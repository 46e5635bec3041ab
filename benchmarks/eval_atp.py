"""Accuracy at the same number of image tokens: ATP against policies that keep a fixed share.

    python benchmarks/eval_atp.py --questions scenes=eval/scene.jsonl easy-VQA=eval/easy.jsonl \
        --out benchmarks/results/atp-demo.json --rows DIR
At each wanted layer mean (50, 25, 15 % of the image tokens) random, grid and fastv cut where the
sidecar's modules stand and keep, after each, what ATP kept on average in training, scaled by one
factor to that mean: the same number of tokens in the same layers, so that only WHICH tokens
differs. fastv also runs as it was published, with one cut after two layers, where that can reach
the mean. Questions are one seeded order; plans that are asked fewer take its beginning, so that
every two rows share questions. DIR keeps each reply, and a second call goes on.
--before scenes=ROWS adds what the same questions got from the model before it was tuned, as
`atp-cpp eval --rows` wrote it; differences are then against its answers with all tokens.
    python benchmarks/eval_atp.py --show benchmarks/results/atp-demo.json
prints the tables of a result again.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from provenance import provenance

from atp_cpp.captioner import Captioner
from atp_cpp.evaluation.evaluate import (
    EvalRow,
    evaluate,
    hash_config,
    load_questions,
    read_plans,
)
from atp_cpp.evaluation.intervals import difference_text, wilson
from atp_cpp.evaluation.report import summarise
from atp_cpp.evaluation.rows_file import EvalRowsFile, read_rows
from atp_cpp.options.plan import SamplingConfig, plan_text
from atp_cpp.sidecar.sidecar import AtpSidecar
from atp_cpp.storage.digest import file_sha256

LEVELS = (0.5, 0.25, 0.15)
FASTV_AFTER = 2  # its K
N_PREDICT = 32


@dataclass(frozen=True)
class Alternative:
    """One line of the table.

    Attributes:
        level: wanted layer mean, as a fraction of the image tokens; 1 for all.
        label: what the reader sees.
        plan: as text.
        n: questions of each file to ask.
    """

    level: float
    label: str
    plan: str
    n: int


def same_shape(
    kept: Sequence[float], cuts: Sequence[int], n_layer: int, mean: float
) -> tuple[float, ...]:
    """Shares to keep after each cut: `kept` times one factor, none above 1, of layer mean `mean`.

    Raises:
        ValueError: the layers before the first cut alone cost more than `mean`.
    """
    spans = [end - begin for begin, end in zip(cuts, [*cuts[1:], n_layer], strict=True)]

    def cost(factor: float) -> float:
        shares = [min(1.0, factor * share) for share in kept]
        live = sum(span * share for span, share in zip(spans, shares, strict=True))
        return (cuts[0] + live) / n_layer

    if not cost(0.0) < mean <= 1.0:
        raise ValueError(f"a layer mean of {mean} cannot be had with a first cut after {cuts[0]}")
    low, high = 0.0, 1.0 / min(kept)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(middle) > mean else (middle, high)
    return tuple(min(1.0, high * share) for share in kept)


def alternatives(sidecar: AtpSidecar, n_many: int, n_few: int) -> list[Alternative]:
    """All lines of the table."""
    out = [Alternative(1.0, "all tokens", "none", n_many)]
    for level in LEVELS:
        shares = same_shape(sidecar.kept, sidecar.cuts, sidecar.n_layer, level)
        for policy in ("random", "grid", "fastv"):
            cuts = zip(shares, sidecar.cuts, strict=True)
            plan = "+".join(f"{policy}:keep={share:.5f},after={after}" for share, after in cuts)
            out.append(Alternative(level, policy, plan, n_few))
        share = (level * sidecar.n_layer - FASTV_AFTER) / (sidecar.n_layer - FASTV_AFTER)
        if share > 0:
            plan = f"fastv:keep={share:.5f},after={FASTV_AFTER}"
            label = f"fastv, one cut after {FASTV_AFTER} layers"
            out.append(Alternative(level, label, plan, n_few))
        near = level == min(LEVELS, key=lambda one: abs(one - sidecar.budget))
        if near:
            out.append(Alternative(level, "ATP, its own thresholds", "atp", n_many))
        label = f"ATP, budget {100 * level:g} %"
        out.append(Alternative(level, label, f"atp:budget={level}", n_many if near else n_few))
    return out


def ask(
    captioner: Captioner, file: Path, plans: Sequence[Alternative], rows_file: Path, seed: int
) -> list[EvalRow]:
    """Replies to one file of questions, old and new; every question under all its plans in turn."""
    sampling = SamplingConfig(n_predict=N_PREDICT)
    config_hash = hash_config(
        file_sha256(captioner.model),
        file_sha256(captioner.mmproj),
        sampling,
        atp_sha256="" if captioner.atp is None else file_sha256(captioner.atp),
    )
    questions = load_questions(file)
    random.Random(seed).shuffle(questions)
    rows: list[EvalRow] = []
    first = 0
    with EvalRowsFile(rows_file) as kept:
        for n in sorted({plan.n for plan in plans}):
            settled = read_plans([plan.plan for plan in plans if plan.n >= n], captioner)
            replies = evaluate(
                captioner,
                questions[first:n],
                settled,
                image_root=file.parent,
                sampling=sampling,
                config_hash=config_hash,
                done=kept.done,
            )
            for row, is_new in replies:
                rows.append(row)
                if is_new:
                    kept.append(row)
                if is_new and len(rows) % 500 == 0:
                    print(f"{file.name}: {len(rows)} replies", flush=True)
            first = n
    return rows


def paired(rows: Sequence[EvalRow], reference: Sequence[EvalRow]) -> tuple[float, float]:
    """(points above the reference, their standard error) over the questions both were asked."""
    right = {(row.image, row.question): row.correct for row in reference}
    differences = [float(row.correct) - right[row.image, row.question] for row in rows]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if rows[1:] else 0.0
    return 100 * statistics.fmean(differences), 100 * error


def result(rows: Sequence[EvalRow], plan: str, reference: Sequence[EvalRow]) -> dict[str, Any]:
    """The figures of one plan on one file of questions."""
    mine = [row for row in rows if row.plan == plan]
    summary = summarise(mine)[0]
    points, error = paired(mine, reference)
    counts = [row.tokens_mean for row in mine if not row.error]
    return {
        "n": summary.n,
        "n_failed": summary.n_failed,
        "accuracy": summary.accuracy,
        "points": points,
        "points_error": error,
        "by_kind": summary.by_kind,
        "n_by_kind": summary.n_by_kind,
        "tokens_mean": summary.tokens_mean,
        "tokens_std": statistics.stdev(counts) if counts[1:] else 0.0,
        "kept": [
            statistics.fmean(column)
            for column in zip(*(r.n_kept for r in mine if r.n_kept), strict=True)
        ],
        "kv_bytes": summary.kv_bytes,
        "t_prefill": summary.t_prefill,
    }


def measure(a: argparse.Namespace) -> dict[str, Any]:
    """Asks everything; the content of the JSON file."""
    files = {name: Path(path) for name, _, path in (item.partition("=") for item in a.questions)}
    with Captioner(a.model, mmproj=a.mmproj, atp=a.atp, n_threads=a.threads) as captioner:
        if captioner.atp is None:
            raise SystemExit("there is no sidecar; give --atp")
        sidecar = AtpSidecar.read_gguf(captioner.atp)
        plans = alternatives(sidecar, a.many, a.few)
        caps = {name: int(n) for name, _, n in (item.partition("=") for item in a.cap)}
        asked = {}
        for name, file in files.items():
            capped = [replace(plan, n=min(plan.n, caps.get(name, plan.n))) for plan in plans]
            asked[name] = ask(captioner, file, capped, a.rows / f"{name}.jsonl", a.seed)
        texts = [plan_text(plan) for plan in read_plans([p.plan for p in plans], captioner)]
        facts = {
            "mmproj_sha256": file_sha256(captioner.mmproj),
            "model_sha256": file_sha256(captioner.model),
            "atp": captioner.atp.name,
            "atp_sha256": file_sha256(captioner.atp),
            "atp_kept_in_training": list(sidecar.kept),
            "cuts": list(sidecar.cuts),
            "questions_sha256": {name: file_sha256(file) for name, file in files.items()},
            "seed": a.seed,
            "threads": a.threads,
        }
        where_from = {**provenance(captioner.model), **facts}
    known = {name: list(rows.values()) for name, rows in before_rows(a).items()}
    reference = {
        name: [row for row in known.get(name, rows) if row.plan == "none"]
        for name, rows in asked.items()
    }
    lines = [
        {
            "level": plan.level,
            "label": plan.label,
            "plan": text,
            **{name: result(rows, text, reference[name]) for name, rows in asked.items()},
        }
        for plan, text in zip(plans, texts, strict=True)
    ]
    lines += before_lines(known, reference)
    return {"provenance": where_from, "sources": list(files), "lines": lines}


def before_rows(a: argparse.Namespace) -> dict[str, dict[tuple[str, str, str, str], EvalRow]]:
    """The replies of the model before it was tuned, by source."""
    named = [item.partition("=") for item in a.before]
    return {name: read_rows(Path(path)) for name, _, path in named}


def before_lines(
    known: dict[str, list[EvalRow]], reference: dict[str, list[EvalRow]]
) -> list[dict[str, Any]]:
    """Lines of the model before it was tuned, with the sources that it was asked."""
    out = []
    for plan in dict.fromkeys(row.plan for rows in known.values() for row in rows):
        of_plan = {
            name: result(rows, plan, reference[name])
            for name, rows in known.items()
            if any(row.plan == plan for row in rows)
        }
        some = [
            row for rows in known.values() for row in rows if row.plan == plan and not row.error
        ]
        share = statistics.fmean(row.tokens_mean / row.n_image_tokens for row in some)
        level = min((1.0, *LEVELS), key=lambda one: abs(one - share))
        label = "all tokens" if plan == "none" else plan.partition(":")[0]
        label += f", one cut after {FASTV_AFTER} layers" if label == "fastv" else ""
        out.append({"level": level, "label": f"before tuning, {label}", "plan": plan, **of_plan})
    return out


def table(content: dict[str, Any]) -> str:
    """The table to read: one line a plan, levels in bold headings."""
    sources = content["sources"]
    head = ["layer mean", "policy", "mean tokens"]
    head += [part for name in sources for part in (f"{name} [95 %]", "points [95 %]")]
    head += ["KV MiB", "prefill ms"]
    out = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for line in content["lines"]:
        first = line[sources[0]]
        cells = [f"{100 * line['level']:g} %", line["label"], f"{first['tokens_mean']:.1f}"]
        for name in sources:
            one = line.get(name)
            if one is None:
                cells += ["", ""]
                continue
            low, high = (100 * share for share in wilson(one["accuracy"], one["n"]))
            against = difference_text(one["points"], one["points_error"])
            is_itself = one["points"] == 0 and line["plan"] == "none"
            right = f"{100 * one['accuracy']:.1f} % [{low:.1f}, {high:.1f}]"
            cells += [right, "" if is_itself else against]
        cells += [f"{first['kv_bytes'] / 2**20:.2f}", f"{first['t_prefill']:.0f}"]
        if line["plan"].startswith("atp"):
            cells[1:] = [f"**{cell}**" if cell else "" for cell in cells[1:]]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def kinds_table(content: dict[str, Any], source: str) -> str:
    """Accuracy by kind of question, one line a plan."""
    kinds = sorted(content["lines"][0][source]["by_kind"])
    lines = ["| layer mean | policy | n | all | " + " | ".join(kinds) + " | tokens | spread |"]
    lines.append("|---|---|" + "---:|" * (len(kinds) + 4))
    for line in content["lines"]:
        if source not in line:
            continue
        one = line[source]
        cells = [f"{100 * line['level']:g} %", line["label"], str(one["n"])]
        cells.append(f"{100 * one['accuracy']:.1f} %")
        known = one["by_kind"]
        cells += [f"{100 * known[kind]:.1f} %" if kind in known else "-" for kind in kinds]
        cells += [f"{one['tokens_mean']:.1f}", f"{one['tokens_std']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def show(content: dict[str, Any]) -> None:
    """Prints all tables of a result."""
    print(table(content))
    for source in content["sources"]:
        print(f"\n{source}, by kind of question:\n\n{kinds_table(content, source)}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", nargs="+", metavar="NAME=JSONL")
    parser.add_argument("--show", type=Path, metavar="JSON", help="print an earlier result")
    parser.add_argument("-m", "--model", help="default: the demo model")
    parser.add_argument("--mmproj")
    parser.add_argument("--atp")
    parser.add_argument("--rows", type=Path, help="folder for the replies")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--many", type=int, default=1000, help="questions for none and ATP")
    parser.add_argument("--few", type=int, default=300, help="questions for the other plans")
    parser.add_argument(
        "--cap", nargs="*", default=[], metavar="NAME=N", help="ask at most N of these questions"
    )
    parser.add_argument(
        "--before", nargs="*", default=[], metavar="NAME=ROWS", help="of the model before tuning"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-t", "--threads", type=int, default=0)
    a = parser.parse_args()
    if a.show is not None:
        show(json.loads(a.show.read_text(encoding="utf-8")))
        return
    if not a.questions or a.rows is None or a.out is None:
        parser.error("give --questions, --rows and --out, or --show")
    a.rows.mkdir(parents=True, exist_ok=True)
    content = measure(a)
    a.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    show(content)


if __name__ == "__main__":
    main()
