"""One row of results per (image, prompt), the same fields in every output."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from atp_cpp.caption import Caption
from atp_cpp.models.files import ModelFiles
from atp_cpp.options.plan import CutSpec, plan_text

__all__ = ["CANCELLED", "ERROR", "OK", "Row", "failed_row", "good_row"]

OK = "ok"
ERROR = "error"
CANCELLED = "cancelled"  # finish_reason of a caption that was interrupted


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What ``--json`` prints and ``--out`` holds, one line a row.

    Attributes:
        custom_id: the caller's name of the image; the image's path if the input gives no name.
        image: path of the image, or its place in an archive.
        sha256: SHA-256 of the image's bytes, 64 hex digits; "" where the bytes are not known.
        stamp: "BYTES:NANOSECONDS", size and time of the image's file when it was read; "" if the
            image is no file.
        prompt: the question.
        caption: the answer; in an interrupted row the part that was there.
        parsed: the answer as an object where a JSON schema was given, else null.
        finish_reason: "stop", "length", "repetition", "cancelled", or "error".
        status: "ok" or "error".
        error: what went wrong, "" if nothing.
        n_image_tokens: image tokens before any cut.
        n_kept: image tokens alive after each cut.
        tokens_mean: live image tokens, mean over all layers.
        thresholds: of policy atp, per cut: theta_r, theta_s, and the offset that a budget shifts
            both by (null where the budget takes more tokens than any offset lets through).
        t_load: ms to open the image.
        t_encode: ms of the vision encoder.
        t_prefill: ms to compute the prompt.
        t_decode: ms to generate the answer.
        kv_bytes: real size of all caches.
        model: file of the text model.
        mmproj: file of the vision projector.
        atp: file of the ATP sidecar, "" without one.
        policy: the cuts made, or "none".
        config_hash: hash of everything that can change a caption, 16 hex digits; "" if the run
            makes no hash.
        seed: seed of the random draw of tokens.
    """

    custom_id: str
    image: str
    sha256: str = ""
    stamp: str = ""
    prompt: str
    caption: str
    parsed: Any = None
    finish_reason: str
    status: str
    error: str = ""
    n_image_tokens: int = 0
    n_kept: list[int] = field(default_factory=list)
    tokens_mean: float = 0.0
    thresholds: list[list[float | None]] = field(default_factory=list)
    t_load: float = 0.0
    t_encode: float = 0.0
    t_prefill: float = 0.0
    t_decode: float = 0.0
    kv_bytes: int = 0
    model: str = ""
    mmproj: str = ""
    atp: str = ""
    policy: str = "none"
    config_hash: str = ""
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Field name -> value, in the order of the outputs."""
        return asdict(self)

    def as_line(self) -> bytes:
        """One line of a JSONL file, with its end; :meth:`from_dict` reads it back.

        A file name that is not valid UTF-8 is written as JSON escapes. A number that is not finite
        is written as null.
        """
        row = self.as_dict()
        try:
            text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        except ValueError:
            text = json.dumps(_without_nan(row), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8", "backslashreplace") + b"\n"

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Row:
        """The row that :meth:`as_dict` gave; fields that Row does not have are left out.

        Raises:
            ValueError: a field is missing, or of another type.
        """
        values = {}
        for name, check in _CHECKS.items():
            if name in row:
                value = row[name]
                if not check(value):
                    raise ValueError(f"{name} is {value!r}")
                values[name] = value
            elif name in _NEEDED:
                raise ValueError(f"{name} is missing")
        if values["status"] not in (OK, ERROR):
            raise ValueError(f"status is {values['status']!r}; expected {OK} or {ERROR}")
        return cls(**values)


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_int(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_ints(value: Any) -> bool:
    return type(value) is list and all(map(_is_int, value))


def _is_thresholds(value: Any) -> bool:
    return type(value) is list and all(
        type(cut) is list and all(x is None or _is_number(x) for x in cut) for cut in value
    )


_BY_TYPE = {
    "str": _is_text,
    "int": _is_int,
    "float": _is_number,
    "Any": lambda value: True,
    "list[int]": _is_ints,
    "list[list[float | None]]": _is_thresholds,
}
_CHECKS = {f.name: _BY_TYPE[str(f.type)] for f in fields(Row)}  # types are texts in this file
_NEEDED = frozenset(
    ("custom_id", "image", "prompt", "caption", "finish_reason", "status", "config_hash")
)


def good_row(
    image: str,
    prompt: str,
    caption: Caption,
    files: ModelFiles,
    seed: int,
    *,
    custom_id: str | None = None,
    sha256: str = "",
    stamp: str = "",
    parsed: Any = None,
    config_hash: str = "",
) -> Row:
    """The row of a caption; without a custom_id the image's name is its id."""
    report = caption.report
    return Row(
        custom_id=image if custom_id is None else custom_id,
        image=image,
        sha256=sha256,
        stamp=stamp,
        prompt=prompt,
        caption=caption.text,
        parsed=parsed,
        finish_reason=caption.finish_reason,
        status=OK,
        n_image_tokens=report.n_image_tokens,
        n_kept=list(report.n_kept),
        tokens_mean=report.tokens_mean,
        thresholds=[[_finite(x) for x in cut] for cut in report.thresholds],
        t_load=caption.t_load,
        t_encode=report.t_encode,
        t_prefill=report.t_prefill,
        t_decode=report.t_decode,
        kv_bytes=report.kv_bytes,
        model=str(files.model),
        mmproj=str(files.mmproj),
        atp="" if files.atp is None else str(files.atp),
        policy=plan_text(caption.plan),
        config_hash=config_hash,
        seed=seed,
    )


def failed_row(
    image: str,
    prompt: str,
    error: str,
    files: ModelFiles,
    seed: int,
    *,
    plan: Sequence[CutSpec],
    partial: str = "",
    cancelled: bool = False,
    custom_id: str | None = None,
    sha256: str = "",
    stamp: str = "",
    t_load: float = 0.0,
    config_hash: str = "",
) -> Row:
    """The row of an image that failed, or whose caption was interrupted.

    Args:
        image: name of the image.
        prompt: the question.
        error: what went wrong.
        files: files of the model.
        seed: seed of the random draw of tokens.
        plan: the cuts that would have been made.
        partial: the part of the answer that came before an interruption.
        cancelled: whether the caption was interrupted, even before its first token.
        custom_id: the caller's name of the image; the name `image` if not given.
        sha256: SHA-256 of the image's bytes; "" if the bytes were not read.
        stamp: "BYTES:NANOSECONDS", size and time of the image's file; "" if the image is no file.
        t_load: ms to open the image, or to try to open it.
        config_hash: hash of everything that can change a caption; "" if the run makes no hash.
    """
    return Row(
        custom_id=image if custom_id is None else custom_id,
        image=image,
        sha256=sha256,
        stamp=stamp,
        prompt=prompt,
        caption=partial,
        finish_reason=CANCELLED if partial or cancelled else "error",
        status=ERROR,
        error=error,
        t_load=t_load,
        model=str(files.model),
        mmproj=str(files.mmproj),
        atp="" if files.atp is None else str(files.atp),
        policy=plan_text(plan),
        config_hash=config_hash,
        seed=seed,
    )


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _without_nan(value: Any) -> Any:
    """The same object with null for numbers that JSON does not have."""
    if isinstance(value, float):
        return _finite(value)
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value
