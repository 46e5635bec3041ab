"""The laws of captions under way together, each stated once: see invariants.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from atp_cpp import _core as core
from support.rig import Floats, Rig, live_rows, nmse, steps
from support.tolerance import check


@dataclass
class Course:
    """Which prompts are started when, and how long each goes on.

    Attributes:
        n_steps: tokens that each prompt is decoded for.
        n_parallel: so many at once.
        order: prompts in the order of their start.
    """

    n_steps: Sequence[int]
    n_parallel: int
    order: Sequence[int]


@dataclass
class _Run:
    """One prompt under way: its logits so far."""

    k: int
    seq: core.Sequence
    logits: list[Floats] = field(default_factory=list)
    n_done: int = 0


def cells_for(plan: Sequence[core.Cut], prompts: Sequence[core.Sequence], n: int) -> list[int]:
    """Cells in each stage that hold n of the prompts whole, whatever a plan keeps, and some."""
    n_stages = 1 + sum(cut.after > 0 for cut in plan)
    return [n * (max(seq.n_rows for seq in prompts) + 64)] * n_stages


def alone(
    rig: Rig, plan: Sequence[core.Cut], seq: core.Sequence, n_steps: int, seed: int
) -> tuple[dict[str, Any], list[Floats]]:
    """What a prompt gives in a decoder of its own: its prefill, and the logits of its steps."""
    decoder = rig.staged()
    decoder.set_plan(plan)
    out = decoder.prefill(seq, n_predict=n_steps, all_logits=True)
    tokens = steps(decoder, n_steps, seed=seed)
    return out, [decoder.decode([(0, t, seq.n_pos + i)]) for i, t in enumerate(tokens)]


def batch_equals_alone(
    rig: Rig,
    plan: Sequence[core.Cut],
    prompts: Sequence[core.Sequence],
    course: Course,
) -> list[int]:
    """Prompts that share caches, and the text before their images, are each as alone.

    They start in the order of `course` as soon as a slot is free, and end at different times, so
    that cells are given back and taken again in pieces. Returns how many rows each shared.
    """
    decoder = rig.staged()
    decoder.set_plan(plan)
    decoder.reserve(cells_for(plan, prompts, course.n_parallel), course.n_parallel)
    todo, live, shared = list(course.order), {}, [-1] * len(prompts)
    ended: dict[int, list[Floats]] = {}
    while todo or live:
        for slot in set(range(course.n_parallel)) - set(live):
            if not todo:
                break
            k = todo.pop(0)
            seq = prompts[k]
            out = decoder.prefill(
                seq, seq_id=slot, n_predict=course.n_steps[k] + 1, all_logits=True
            )
            assert out["has_room"]
            shared[k] = out["n_shared"]
            expected, _ = alone(rig, plan, seq, 0, k)
            assert out["kept"] == expected["kept"]
            rows = live_rows(seq, expected["kept"][-1] if plan else range(seq.n_image_tokens))
            computed = [i for i, row in enumerate(rows) if row >= shared[k]]
            assert len(out["logits"]) == len(computed), "shared rows are not computed again"
            error = nmse(expected["logits"][computed], out["logits"])
            check(error, rig.backend, rig.precision, "batch = alone")
            live[slot] = _Run(k, seq)
        for slot in [s for s, run in live.items() if run.n_done == course.n_steps[run.k]]:
            run = live.pop(slot)
            ended[run.k] = run.logits
            decoder.remove(slot)
        if live:
            _step_all(decoder, live)
    for k, seq in enumerate(prompts):
        _, expected_steps = alone(rig, plan, seq, course.n_steps[k], k)
        if expected_steps:
            error = nmse(np.concatenate(expected_steps), np.concatenate(ended[k]))
            check(error, rig.backend, rig.precision, "batch = alone")
    return shared


def _step_all(decoder: core.Decoder, live: dict[int, _Run]) -> None:
    rows = [
        (slot, steps(decoder, run.n_done + 1, seed=run.k)[run.n_done], run.seq.n_pos + run.n_done)
        for slot, run in live.items()
    ]
    for run, logits in zip(live.values(), decoder.decode(rows), strict=True):
        run.logits.append(logits[None])
        run.n_done += 1
