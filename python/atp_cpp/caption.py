"""The result of one prompt."""

from __future__ import annotations

from dataclasses import dataclass

from atp_cpp._core import Report
from atp_cpp.images.views import View
from atp_cpp.options.plan import CutSpec


@dataclass(frozen=True, slots=True)
class Caption:
    """The result of one prompt.

    Attributes:
        text: the answer, without white space at its ends.
        finish_reason: "stop" (the model, a stop text or the grammar ended the answer), "length"
            (n_predict was reached), "repetition" (the answer ran into a loop; the text keeps one
            round of the loop) or "cancelled".
        report: counts, times and bytes; see ``atp_cpp._core.Report``.
        plan: the cuts that were made, as layer counts.
        t_load: ms to open the images, and to prepare them if the projector's file says how.
        views: for each patch grid of the report, which part of the image it shows. Empty where
            libmtmd prepared the image.
    """

    text: str
    finish_reason: str
    report: Report
    plan: tuple[CutSpec, ...]
    t_load: float
    views: tuple[View, ...] = ()
