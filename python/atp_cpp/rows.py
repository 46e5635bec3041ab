"""One row of results per image, the same fields in every output."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from atp_cpp.captioner import Caption, Captioner
from atp_cpp.config import plan_text


@dataclass(frozen=True, slots=True)
class Row:
    """What ``--json`` prints, one line an image.

    Attributes:
        image: its path.
        prompt: the question.
        caption: the answer; of an interrupted row what was there by then.
        finish_reason: "stop", "length", "cancelled", or "" in a row of status "error".
        status: "ok" or "error".
        error: what went wrong, "" if nothing.
        n_image_tokens: before any cut.
        n_kept: image tokens alive after each cut.
        tokens_mean: live image tokens, mean over all layers.
        thresholds: of policy atp, per cut: theta_r, theta_s, and the offset that a budget shifts
            both by (null where it takes more than any offset would let through).
        t_load: ms to open the image.
        t_encode: ms of the vision encoder.
        t_prefill: ms of the prompt.
        t_decode: ms of the answer.
        kv_bytes: real size of all caches.
        model: file of the text model.
        mmproj: file of the vision projector.
        atp: file of the ATP sidecar, "" without one.
        policy: the cuts made, or "none".
        seed: of the draw.
    """

    image: str
    prompt: str
    caption: str
    finish_reason: str
    status: str
    error: str
    model: str
    mmproj: str
    atp: str
    policy: str
    seed: int
    n_image_tokens: int = 0
    n_kept: list[int] = field(default_factory=list)
    tokens_mean: float = 0.0
    thresholds: list[list[float | None]] = field(default_factory=list)
    t_load: float = 0.0
    t_encode: float = 0.0
    t_prefill: float = 0.0
    t_decode: float = 0.0
    kv_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Field name -> value."""
        return asdict(self)


def good_row(image: str, prompt: str, caption: Caption, captioner: Captioner, seed: int) -> Row:
    """The row of a caption."""
    report = caption.report
    return Row(
        image=image,
        prompt=prompt,
        caption=caption.text,
        finish_reason=caption.finish_reason,
        status="ok",
        error="",
        model=str(captioner.model),
        mmproj=str(captioner.mmproj),
        atp="" if captioner.atp is None else str(captioner.atp),
        policy=plan_text(caption.plan),
        seed=seed,
        n_image_tokens=report.n_image_tokens,
        n_kept=list(report.n_kept),
        tokens_mean=report.tokens_mean,
        thresholds=[[_finite(x) for x in cut] for cut in report.thresholds],
        t_load=caption.t_load,
        t_encode=report.t_encode,
        t_prefill=report.t_prefill,
        t_decode=report.t_decode,
        kv_bytes=report.kv_bytes,
    )


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def failed_row(
    image: str, prompt: str, error: str, captioner: Captioner, seed: int, *, partial: str = ""
) -> Row:
    """The row of an image that failed, or whose caption was interrupted after `partial`."""
    return Row(
        image=image,
        prompt=prompt,
        caption=partial,
        finish_reason="cancelled" if partial else "",
        status="error",
        error=error,
        model=str(captioner.model),
        mmproj=str(captioner.mmproj),
        atp="" if captioner.atp is None else str(captioner.atp),
        policy=plan_text(captioner.plan),
        seed=seed,
    )
