"""Rows of an evaluation -> a table to read and a JSON file to keep."""

from __future__ import annotations

import platform
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from atp_cpp._core import __version__
from atp_cpp.evaluation.evaluate import EvalRow, Question, normal_form
from atp_cpp.evaluation.intervals import wilson


@dataclass(frozen=True, slots=True)
class Summary:
    """One plan over all questions.

    Attributes:
        plan: its text.
        n: questions asked.
        n_failed: questions without a reply; they count as wrong.
        accuracy: over all questions, in [0, 1].
        accuracy_95: its Wilson interval of 95 %.
        by_kind: kind -> accuracy.
        n_by_kind: kind -> questions.
        tokens_mean: live image tokens, mean over layers and questions.
        kv_bytes: mean size of all caches.
        t_prefill: ms, median.
    """

    plan: str
    n: int
    n_failed: int
    accuracy: float
    accuracy_95: tuple[float, float]
    by_kind: dict[str, float]
    n_by_kind: dict[str, int]
    tokens_mean: float
    kv_bytes: float
    t_prefill: float


def summarise(rows: Sequence[EvalRow]) -> list[Summary]:
    """One summary per plan, in the order the plans first appear."""
    plans = dict.fromkeys(row.plan for row in rows)
    return [_summary(plan, [row for row in rows if row.plan == plan]) for plan in plans]


def _summary(plan: str, rows: Sequence[EvalRow]) -> Summary:
    kinds = sorted({row.kind for row in rows})
    answered = [row for row in rows if not row.error]
    return Summary(
        plan=plan,
        n=len(rows),
        n_failed=len(rows) - len(answered),
        accuracy=_accuracy(rows),
        accuracy_95=wilson(_accuracy(rows), len(rows)),
        by_kind={kind: _accuracy([row for row in rows if row.kind == kind]) for kind in kinds},
        n_by_kind={kind: sum(row.kind == kind for row in rows) for kind in kinds},
        tokens_mean=_mean([row.tokens_mean for row in answered]),
        kv_bytes=_mean([float(row.kv_bytes) for row in answered]),
        t_prefill=statistics.median(row.t_prefill for row in answered) if answered else 0.0,
    )


def blind_accuracy(questions: Sequence[Question]) -> float:
    """Accuracy of somebody who sees no image: what the words of a question give away.

    The guess is the most frequent answer to the same question about the other images of the file;
    where no other image has the question, the most frequent answer of its kind there. Ties go to
    the answer that comes first in the file. A policy whose accuracy is near this floor shows
    nothing.

    Returns:
        the share of right guesses, 0 to 1; 0 for no questions.
    """
    by_text: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    by_kind: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for q in questions:
        for group in (by_text[normal_form(q.question)], by_kind[q.kind]):
            group.append((q.image, normal_form(q.answer)))
    right = 0
    for q in questions:
        for group in (by_text[normal_form(q.question)], by_kind[q.kind]):
            others = Counter(answer for image, answer in group if image != q.image)
            if others:
                right += others.most_common(1)[0][0] == normal_form(q.answer)
                break
    return right / len(questions) if questions else 0.0


def _accuracy(rows: Sequence[EvalRow]) -> float:
    return sum(row.correct for row in rows) / len(rows) if rows else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def markdown(summaries: Sequence[Summary]) -> str:
    """The table: accuracies in percent, one line a plan."""
    kinds = sorted({kind for summary in summaries for kind in summary.by_kind})
    columns = ["plan", "n", "all [95 %]", *kinds, "tokens (layer mean)", "KV MiB", "prefill ms"]
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join(["---"] + ["---:"] * (len(columns) - 1)) + "|",
    ]
    for s in summaries:
        failed = f" ({s.n_failed} failed)" if s.n_failed else ""
        low, high = (100 * share for share in s.accuracy_95)
        all_kinds = f"{_percent(s.accuracy)} [{low:.1f}, {high:.1f}]"
        cells = [f"`{s.plan}`", f"{s.n}{failed}", all_kinds]
        cells += [_percent(s.by_kind[kind]) if kind in s.by_kind else "-" for kind in kinds]
        cells += [f"{s.tokens_mean:.1f}", f"{s.kv_bytes / 2**20:.2f}", f"{s.t_prefill:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def provenance(**facts: Any) -> dict[str, Any]:
    """Where a result comes from: the given facts, version, machine and time."""
    return {
        "atp_cpp": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": platform.processor(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **facts,
    }


def report(
    summaries: Sequence[Summary], where_from: dict[str, Any], blind: float
) -> dict[str, Any]:
    """The JSON file's content; `blind` is `blind_accuracy` of the questions."""
    return {
        "provenance": where_from,
        "blind_accuracy": blind,
        "results": [asdict(summary) for summary in summaries],
    }
