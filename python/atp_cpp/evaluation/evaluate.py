"""Accuracy against tokens: the same labelled questions under several plans.

Questions come as JSON lines ``{"image", "question", "answer", "kind"}``, image paths relative to
the file. Each question is asked under every plan before the next one, so that a drift of the
machine's speed hits all plans alike. An answer is right when it equals the label but for case,
spaces and a period at its ends.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from atp_cpp._core import __version__
from atp_cpp.captioner import Captioner
from atp_cpp.errors import AtpError, ImageError, PlanError, StageError
from atp_cpp.options.plan import CutSpec, SamplingConfig, parse_plan, plan_text
from atp_cpp.storage.digest import sha256_hex


@dataclass(frozen=True, slots=True)
class Question:
    """One labelled question: image (a path), question, answer, kind."""

    image: str
    question: str
    answer: str
    kind: str


@dataclass(frozen=True, slots=True)
class EvalRow:
    """One question under one plan.

    Attributes:
        plan: text of the plan.
        image: as the question file names it.
        question: as asked.
        answer: the label.
        kind: of question.
        config_hash: of everything else that decides the reply.
        reply: what the model said.
        correct: whether it equals the label.
        error: why there is no reply, "" if there is one.
        n_image_tokens: before any cut.
        n_kept: after each cut.
        tokens_mean: live image tokens, mean over layers.
        kv_bytes: real size of all caches.
        t_prefill: ms.
    """

    plan: str
    image: str
    question: str
    answer: str
    kind: str
    config_hash: str
    reply: str = ""
    correct: bool = False
    error: str = ""
    n_image_tokens: int = 0
    n_kept: list[int] = field(default_factory=list)
    tokens_mean: float = 0.0
    kv_bytes: int = 0
    t_prefill: float = 0.0

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes a row the same as one already done."""
        return self.plan, self.image, self.question, self.config_hash


def load_questions(path: Path, *, limit: int | None = None, seed: int = 0) -> list[Question]:
    """Reads the question file.

    Args:
        path: JSON lines.
        limit: take a sample of this many, in file order; None for all.
        seed: of the sample.

    Raises:
        AtpError: naming file, line, and what is wrong with it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise AtpError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise AtpError(f"{path}: expected JSON lines in UTF-8: {error}") from error
    questions = [
        _question(line, f"{path}:{number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not questions:
        raise AtpError(f"{path}: holds no question")
    if limit is None or limit >= len(questions):
        return questions
    chosen = sorted(random.Random(seed).sample(range(len(questions)), limit))
    return [questions[i] for i in chosen]


def _question(line: str, where: str) -> Question:
    names = [f.name for f in fields(Question)]
    try:
        row = json.loads(line)
    except ValueError as error:
        raise AtpError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise AtpError(f"{where}: expected an object with {', '.join(names)}")
    row.setdefault("kind", "all")
    missing = [name for name in names if not isinstance(row.get(name), str)]
    if missing:
        raise AtpError(f"{where}: expected text in {', '.join(missing)}")
    return Question(*(row[name] for name in names))


def normal_form(answer: str) -> str:
    """The part of an answer that counts: case, runs of spaces and periods at the ends do not."""
    return " ".join(answer.casefold().split()).strip(". ")


def evaluate(
    captioner: Captioner,
    questions: Sequence[Question],
    plans: Sequence[Sequence[CutSpec]],
    *,
    image_root: Path,
    sampling: SamplingConfig,
    config_hash: str,
    done: dict[tuple[str, str, str, str], EvalRow] | None = None,
) -> Iterator[tuple[EvalRow, bool]]:
    """Asks every question under every plan.

    Args:
        captioner: the model.
        questions: what to ask.
        plans: settled plans, as ``captioner.settle_plan`` returns them.
        image_root: folder that relative image paths start from.
        sampling: how to draw.
        config_hash: see :func:`hash_config`.
        done: rows of an earlier run, by key; their questions are not asked again.

    Yields:
        (row, whether it was asked now). An image that cannot be opened, a prompt that does not
        fit, or a budget that this image cannot meet, gives a row with ``error``.
    """
    done = done or {}
    for question in questions:
        for plan in plans:
            bare = EvalRow(plan_text(plan), **asdict(question), config_hash=config_hash)
            if bare.key in done:
                yield _judged(done[bare.key], question), False
                continue
            yield _ask(captioner, bare, plan, image_root / question.image, sampling), True


def _judged(row: EvalRow, question: Question) -> EvalRow:
    """An earlier reply against the label as it is now."""
    correct = normal_form(row.reply) == normal_form(question.answer)
    return replace(row, answer=question.answer, kind=question.kind, correct=correct)


def _ask(
    captioner: Captioner,
    bare: EvalRow,
    plan: Sequence[CutSpec],
    image: Path,
    sampling: SamplingConfig,
) -> EvalRow:
    known = {name: getattr(bare, name) for name in _IDENTITY}
    try:
        caption = captioner.caption(image, bare.question, policy=plan or "none", sampling=sampling)
    except (ImageError, PlanError, StageError) as error:
        return EvalRow(**known, error=str(error))
    report = caption.report
    return EvalRow(
        **known,
        reply=caption.text,
        correct=normal_form(caption.text) == normal_form(bare.answer),
        n_image_tokens=report.n_image_tokens,
        n_kept=list(report.n_kept),
        tokens_mean=report.tokens_mean,
        kv_bytes=report.kv_bytes,
        t_prefill=report.t_prefill,
    )


_IDENTITY = ("plan", "image", "question", "answer", "kind", "config_hash")


def hash_config(
    model_sha256: str, mmproj_sha256: str, sampling: SamplingConfig, *, atp_sha256: str = ""
) -> str:
    """16 hex digits that change when model, projector, sidecar, version or sampling change."""
    facts = [model_sha256, mmproj_sha256, atp_sha256, __version__, sampling.facts()]
    return sha256_hex(json.dumps(facts, sort_keys=True).encode())[:16]


def read_plans(texts: Sequence[str], captioner: Captioner) -> list[tuple[CutSpec, ...]]:
    """Alternatives as text, cuts of one plan joined by ``+`` -> settled plans.

    Raises:
        PlanError: a text that is no plan, or one this model cannot run.
        AtpError: two alternatives that mean the same.
    """
    plans = [captioner.settle_plan(parse_plan(text.split("+"))) for text in texts]
    names = [plan_text(plan) for plan in plans]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise AtpError(f"two alternatives are the same plan: {name}")
    return plans
