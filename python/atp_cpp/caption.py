"""What comes out for one prompt."""

from __future__ import annotations

from dataclasses import dataclass

from atp_cpp._core import Report
from atp_cpp.images.views import View
from atp_cpp.options.plan import CutSpec


@dataclass(frozen=True, slots=True)
class Caption:
    """What came out for one prompt.

    Attributes:
        text: the answer, white space at its ends dropped.
        finish_reason: "stop" (the model, a stop text or the grammar ended it), "length" (n_predict
            reached), "repetition" (a loop, of which the text keeps one round) or "cancelled".
        report: counts, times and bytes; see ``atp_cpp._core.Report``.
        plan: the cuts that were made, as layer counts.
        t_load: ms to open the images, and to prepare them if the projector's file says how.
        views: what each grid of the report shows of its image; empty where libmtmd prepared it.
    """

    text: str
    finish_reason: str
    report: Report
    plan: tuple[CutSpec, ...]
    t_load: float
    views: tuple[View, ...] = ()
