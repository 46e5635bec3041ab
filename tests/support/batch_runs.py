"""Runs captions through an engine's batch: what tests of it share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atp_cpp import _core as core

QUESTION = " what is in the picture?"


def prompt_of(engine: core.Engine, n_images: int = 1, before: str = "a picture: ") -> str:
    """Some text, the images, and the question."""
    return before + engine.info.media_marker * n_images + QUESTION


def run(
    engine: core.Engine,
    sequences: Sequence[core.Sequence],
    n_predict: Sequence[int],
    options: Sequence[dict[str, Any]] | None = None,
) -> list[core.Result]:
    """All of them, as many at once as there is room for; results in the order given."""
    results: dict[int, core.Result] = {}
    live: dict[int, int] = {}
    todo = list(range(len(sequences)))
    while todo or live:
        while todo:
            k = todo[0]
            more = options[k] if options else {}
            started = engine.start(sequences[k], n_predict=n_predict[k], **more)
            if started.result is not None:
                results[k] = started.result
            elif started.slot >= 0:
                live[started.slot] = k
            else:
                assert live, "there must be room for one"
                break
            todo.pop(0)
        for slot, result in engine.step():
            results[live.pop(slot)] = result
    return [results[k] for k in range(len(sequences))]


def reserve_for(
    engine: core.Engine,
    sequences: Sequence[core.Sequence],
    n_predict: Sequence[int],
    n_parallel: int,
) -> None:
    """Room for n_parallel of the largest."""
    expected = [engine.expect(seq, n) for seq, n in zip(sequences, n_predict, strict=True)]
    largest = [max(stage) for stage in zip(*expected, strict=True)]
    engine.reserve([n_parallel * n for n in largest], n_parallel)


def facts(result: core.Result) -> tuple[Any, ...]:
    """What must be the same for a caption alone and in a batch."""
    report = result.report
    text = (result.text, result.tokens, result.finish_reason, result.error)
    kept = (report.n_kept, report.kept, report.grids, report.tokens_mean)
    return text, kept, (report.n_image_tokens, report.n_prompt, report.n_decoded)


def alone(
    engine: core.Engine,
    images: Sequence[Any],
    n_predict: Sequence[int],
    plan: Sequence[core.Cut] = (),
    **options: Any,
) -> list[tuple[Any, ...]]:
    """What generate makes of each."""
    return [
        facts(engine.generate(prompt_of(engine), [image], plan=plan, n_predict=n, **options))
        for image, n in zip(images, n_predict, strict=True)
    ]


def encoded(engine: core.Engine, images: Sequence[Any]) -> list[core.Sequence]:
    """One image each."""
    return [engine.encode(prompt_of(engine), [image]) for image in images]
