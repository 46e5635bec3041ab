"""What the user asks for: where to cut, what to keep, how to sample. Checked before loading.

Text form of a cut: ``NAME[:key=value,…]``, for instance ``fastv:keep=0.25,after=2``. A plan is
several cuts. Knows nothing of models; :func:`resolve` meets the model's depth and legal cuts last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

from atp_cpp._core import Cut, policy_names
from atp_cpp.errors import AtpError, PlanError

POLICIES = tuple(policy_names())
DEFAULT_AFTER = 2  # FastV's K
DEFAULT_KEEP = 0.5  # FastV's R = 50 %

_NEEDS_SCORE = ("fastv",)
_KEYS = ("after", "keep", "seed")


@dataclass(frozen=True, slots=True)
class CutSpec:
    """One cut.

    Attributes:
        after: layers run before the cut: a count (0 is before the first layer), or a fraction of
            the depth in (0, 1), rounded.
        policy: who chooses: none, random, grid or fastv.
        keep: fraction of each image's original tokens that lives on, in (0, 1].
        seed: for policies that draw.
    """

    after: int | float
    policy: str
    keep: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises PlanError naming the field that cannot be."""
        if self.policy not in POLICIES:
            raise PlanError(f"unknown policy {self.policy!r}; there are {', '.join(POLICIES)}")
        if isinstance(self.after, float) and not 0.0 < self.after < 1.0:
            raise PlanError(
                f"{self}: after={self.after} is neither a layer count nor a fraction of the depth; "
                "write a whole number, or a fraction above 0 and below 1"
            )
        if self.after < 0:
            raise PlanError(f"{self}: after must not be negative")
        if not 0.0 < self.keep <= 1.0:
            raise PlanError(f"{self}: keep must be above 0 and at most 1")
        if self.policy == "none" and self.keep != 1.0:
            raise PlanError(
                f"{self}: policy none keeps everything; choose another policy or leave keep out"
            )
        if self.policy in _NEEDS_SCORE and self.after == 0:
            raise PlanError(
                f"{self}: {self.policy} needs attention scores, and there are none before the "
                "first layer; cut after at least 1 layer"
            )
        if not 0 <= self.seed < 2**64:
            raise PlanError(f"{self}: seed must lie in 0 … 2^64 - 1")

    def __str__(self) -> str:
        """The text form, as parse_policy reads it."""
        seed = f",seed={self.seed}" if self.seed else ""
        return f"{self.policy}:keep={self.keep:g},after={self.after:g}{seed}"


PolicyLike: TypeAlias = "str | CutSpec | Sequence[str | CutSpec] | None"


def parse_policy(text: str, *, keep: float | None = None) -> CutSpec:
    """Reads ``NAME[:key=value,…]``.

    Args:
        text: for instance "fastv:keep=0.25,after=2", "grid:keep=0.5,after=0.33", "none".
        keep: what to keep if the text does not say; 0.5 if not given.

    Returns:
        The cut. Without ``after`` it comes after two layers; "none" alone is no cut at all (after
        0, all kept).

    Raises:
        PlanError: what is wrong in the text, and what could stand there.
    """
    name, colon, options = (part.strip() for part in text.partition(":"))
    if name not in POLICIES:
        raise PlanError(f"{text!r}: unknown policy {name!r}; there are {', '.join(POLICIES)}")
    if colon and not options:
        raise PlanError(
            f"{text!r}: nothing after the colon; write for instance {name}:keep=0.5,after=2"
        )
    values = _options(text, options)
    try:
        if name == "none":
            return CutSpec(
                after=_after(values.get("after", "0")),
                policy=name,
                keep=float(values.get("keep", 1.0)),
                seed=int(values.get("seed", 0)),
            )
        return CutSpec(
            after=_after(values.get("after", str(DEFAULT_AFTER))),
            policy=name,
            keep=float(values.get("keep", DEFAULT_KEEP if keep is None else keep)),
            seed=int(values.get("seed", 0)),
        )
    except ValueError as error:
        raise PlanError(
            f"{text!r}: {error}; keys take numbers, for instance {name}:keep=0.5,after=2"
        ) from None


def _options(text: str, options: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for item in options.split(",") if options else []:
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in _KEYS:
            raise PlanError(f"{text!r}: unknown key {key!r}; there are {', '.join(_KEYS)}")
        if not equals or not value:
            raise PlanError(f"{text!r}: {key} has no value; write {key}=NUMBER")
        if key in values:
            raise PlanError(f"{text!r}: {key} stands there twice")
        values[key] = value
    return values


def _after(value: str) -> int | float:
    try:
        return int(value)
    except ValueError:
        return float(value)


def parse_plan(policy: PolicyLike, *, keep: float | None = None) -> tuple[CutSpec, ...]:
    """Any way to name a plan -> its cuts.

    Args:
        policy: one cut, several, or None for no pruning; as text or CutSpec.
        keep: what to keep where a text does not say.

    Raises:
        PlanError: see parse_policy.
    """
    if policy is None:
        return ()
    items = [policy] if isinstance(policy, (str, CutSpec)) else list(policy)
    return tuple(
        item if isinstance(item, CutSpec) else parse_policy(item, keep=keep) for item in items
    )


def plan_text(plan: Sequence[CutSpec]) -> str:
    """One line for rows and tables: cuts joined by ``+``, or "none"."""
    cuts = [cut for cut in plan if not _is_nothing(cut)]
    return "+".join(str(cut) for cut in cuts) or "none"


def settle(plan: Sequence[CutSpec], n_layer: int, legal_cuts: Sequence[int]) -> tuple[CutSpec, ...]:
    """A plan for one model: fractions become layer counts, cuts come in order of depth.

    A fraction is rounded to the nearest legal cut; a layer count must itself be legal.

    Args:
        plan: cuts as asked for.
        n_layer: depth of the model.
        legal_cuts: layer counts after which it can be cut; 0 is always legal.

    Raises:
        PlanError: a cut out of range, at a place that cannot be cut, or two at one place.
    """
    settled = [_settle_one(cut, n_layer, legal_cuts) for cut in plan if not _is_nothing(cut)]
    settled.sort(key=lambda cut: cut.after)
    for first, second in pairwise(settled):
        if first.after == second.after:
            raise PlanError(
                f"two cuts after {first.after} layers ({first} and {second}); "
                "each needs its own place"
            )
    return tuple(settled)


def resolve(plan: Sequence[CutSpec], n_layer: int, legal_cuts: Sequence[int]) -> list[Cut]:
    """The plan as the engine takes it; see :func:`settle` for the rules and errors."""
    return [
        Cut(int(cut.after), cut.policy, cut.keep, cut.seed)
        for cut in settle(plan, n_layer, legal_cuts)
    ]


def _is_nothing(cut: CutSpec) -> bool:
    return cut.policy == "none" and cut.after == 0


def _settle_one(cut: CutSpec, n_layer: int, legal_cuts: Sequence[int]) -> CutSpec:
    legal = sorted(after for after in legal_cuts if 0 < after < n_layer)
    if isinstance(cut.after, float):
        if not legal:
            raise PlanError(f"{cut}: this model cannot be cut between its layers")
        wanted = cut.after * n_layer
        return replace(cut, after=min(legal, key=lambda after: (abs(after - wanted), after)))
    if cut.after >= n_layer:
        raise PlanError(
            f"{cut}: this model has {n_layer} layers; "
            f"choose after=0 to {n_layer - 1}, or a fraction"
        )
    if cut.after != 0 and cut.after not in legal:
        places = _ranges(legal) or "none"
        raise PlanError(
            f"{cut}: this model cannot be cut after {cut.after} layers; legal are {places}"
        )
    return cut


def _ranges(values: Sequence[int]) -> str:
    """[1, 2, 3, 7] -> "1-3, 7"."""
    parts: list[str] = []
    start = 0
    for i, value in enumerate(values):
        if i + 1 == len(values) or values[i + 1] != value + 1:
            parts.append(str(value) if i == start else f"{values[start]}-{value}")
            start = i + 1
    return ", ".join(parts)


def format_cuts(legal_cuts: Sequence[int]) -> str:
    """Layer counts as text: "1-11", "2, 4-6", or "none"."""
    return _ranges(sorted(legal_cuts)) or "none"


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How the text is drawn.

    Attributes:
        n_predict: at most this many tokens, >= 1.
        temp: 0 is greedy.
        top_k: draw among the k likeliest; 0 for all.
        top_p: … that make up this probability, in (0, 1].
        min_p: … that have at least this share of the likeliest's probability, in [0, 1].
        seed: of the draw.
        stop: texts that end the caption; they are not part of it.
    """

    n_predict: int = 128
    temp: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises AtpError naming the field that cannot be."""
        checks = (
            (self.n_predict >= 1, f"n_predict must be at least 1, got {self.n_predict}"),
            (
                math.isfinite(self.temp) and self.temp >= 0,
                f"temp must be 0 (greedy) or more, got {self.temp}",
            ),
            (self.top_k >= 0, f"top_k must be 0 (all) or more, got {self.top_k}"),
            (0 < self.top_p <= 1, f"top_p must be above 0 and at most 1, got {self.top_p}"),
            (0 <= self.min_p <= 1, f"min_p must lie in 0 … 1, got {self.min_p}"),
            (0 <= self.seed < 2**32, f"seed must lie in 0 … 2^32 - 1, got {self.seed}"),
            (all(self.stop), "a stop text must not be empty"),
        )
        for holds, message in checks:
            if not holds:
                raise AtpError(message)
