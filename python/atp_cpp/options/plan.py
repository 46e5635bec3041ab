"""Where to cut and what to keep, as the user asks for it. Checked before loading.

Text form of a cut: ``NAME[:key=value,…]``, for instance ``fastv:keep=0.25,after=2``. A plan is
several cuts. ``atp[:budget=F|N]`` stands for all cuts of a sidecar. Knows nothing of models; only
:func:`settle` and :func:`resolve` get the model's depth and legal cuts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeAlias

from atp_cpp._core import Cut, policy_facts
from atp_cpp.errors import PlanError
from atp_cpp.options.sampling import SamplingConfig as SamplingConfig

ATP = "atp"  # the policy whose cuts come from a sidecar
_NEEDS = policy_facts()  # name -> the scores it needs
POLICIES = (*_NEEDS, ATP)
NEEDS = ("none", "last_row", ATP)  # the scores that a function may ask for
DEFAULT_AFTER = 2  # FastV's K
DEFAULT_KEEP = 0.5  # FastV's R = 50 %

_KEYS = ("after", "keep", "seed")
_ATP_KEYS = ("budget",)

Budget: TypeAlias = "float | int"
# arrays over the live image tokens -> the image-token indices that stay, ascending
PolicyFunction: TypeAlias = "Callable[[dict[str, Any]], Sequence[int]]"


@dataclass(frozen=True, slots=True)
class CutSpec:
    """One cut.

    Attributes:
        after: layers run before the cut: a count (0 is before the first layer), or a fraction of
            the depth in (0, 1), rounded. For the policy atp the sidecar states it; :func:`settle`
            sets it.
        policy: how tokens are chosen: none, random, grid, fastv or atp; or your own function. The
            function takes a dict of arrays over the live image tokens (index, image, y, x, and the
            arrays that `needs` adds). It returns the image-token indices that stay, ascending, at
            least one of each image. Rows store the module and name of the function, so give a
            changed function another name.
        keep: fraction of each image's original tokens that stays, in (0, 1]. A function decides
            this itself.
        seed: seed of policies that draw at random.
        budget: of the policy atp: the mean of the image tokens over the layers, as a fraction of
            the prompt's image tokens (float in (0, 1]) or a count (int, at least 2). None: the
            learned thresholds alone decide.
        needs: the scores that a function gets: "none", "last_row" (`score`, the attention from the
            prompt's last row) or "atp" (`self_sum`, `cross`, `n_visible`). The scores of a named
            policy are fixed.
    """

    after: int | float
    policy: str | PolicyFunction
    keep: float = 1.0
    seed: int = 0
    budget: Budget | None = None
    needs: str = "none"

    def __post_init__(self) -> None:
        """Raises PlanError, with the name of the field, for a value that cannot be used."""
        if callable(self.policy):
            if self.keep != 1.0 or self.needs not in NEEDS:
                raise PlanError(
                    f"{self}: a function decides how much it keeps (leave keep out), and needs one "
                    f"of {', '.join(NEEDS)}; got keep={self.keep:g}, needs={self.needs!r}"
                )
        elif self.policy not in POLICIES:
            raise PlanError(
                f"unknown policy {self.policy!r}; there are {', '.join(POLICIES)}, and functions"
            )
        elif self.needs != "none":
            raise PlanError(f"{self}: needs is for functions; {self.policy} knows what it needs")
        if self.budget is not None:
            _check_budget(self.budget)
            if self.policy != ATP:
                raise PlanError(
                    f"{self}: a budget is for policy {ATP}; {self.policy} takes keep=FRACTION"
                )
        if self.policy == ATP and self.keep != 1.0:
            raise PlanError(
                f"{self}: how much {ATP} keeps is learned, or set by budget=F|N; leave keep out"
            )
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
        if self.after == 0 and _NEEDS.get(self.name, self.needs) != "none":
            raise PlanError(
                f"{self}: {self.name} needs attention scores, and there are none before the "
                "first layer; cut after at least 1 layer"
            )
        if not 0 <= self.seed < 2**64:
            raise PlanError(f"{self}: seed must lie in 0 … 2^64 - 1")

    @property
    def name(self) -> str:
        """The policy's name; for a function, its module and name."""
        if callable(self.policy):
            kind = type(self.policy)
            named = self.policy if hasattr(self.policy, "__qualname__") else kind
            return f"{named.__module__}.{named.__qualname__}"
        return self.policy

    def __str__(self) -> str:
        """The text form that parse_policy reads; for a function, its name and its place."""
        if callable(self.policy):
            return f"{self.name}:after={self.after:g}"
        if self.policy == ATP:
            return ATP if self.budget is None else f"{ATP}:budget={self.budget}"
        seed = f",seed={self.seed}" if self.seed else ""
        return f"{self.policy}:keep={self.keep:g},after={self.after:g}{seed}"


_EXAMPLES = dict.fromkeys(POLICIES, "keep=0.5,after=2") | {ATP: "budget=0.25"}

PolicyLike: TypeAlias = "str | CutSpec | Sequence[str | CutSpec] | None"


def _check_budget(budget: Budget) -> None:
    """Raises PlanError unless it is a float in (0, 1] or an int of at least 2."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise PlanError(f"budget={budget!r}: expected a float (fraction) or an int (image tokens)")
    if isinstance(budget, int) and budget == 1:
        raise PlanError(
            "budget=1 would be one image token in the mean over layers; "
            "write 1.0 for all of them, or a count of at least 2"
        )
    if not (0.0 < budget <= 1.0 if isinstance(budget, float) else 2 <= budget < 2**31):
        raise PlanError(
            f"budget={budget}: expected a fraction with a decimal point, above 0 and at most 1.0, "
            "or a whole count of image tokens, at least 2"
        )


def parse_budget(text: str) -> Budget:
    """Reads a budget: "0.25" is a fraction of the image tokens, "144" a number of image tokens.

    Raises:
        PlanError: the text is neither.
    """
    try:
        budget: Budget = int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise PlanError(
            f"budget={text}: expected a fraction such as 0.25, or a count of image tokens "
            "such as 144"
        ) from None
    _check_budget(budget)
    return budget


def parse_policy(text: str, *, keep: float | None = None, budget: Budget | None = None) -> CutSpec:
    """Reads ``NAME[:key=value,…]``.

    Args:
        text: for instance "fastv:keep=0.25,after=2", "grid:keep=0.5,after=0.33", "atp:budget=0.25",
            "none".
        keep: the fraction to keep if the text states none; 0.5 if not given.
        budget: the budget of atp if the text states none.

    Returns:
        The cut. Without ``after`` the cut comes after two layers. "none" alone is no cut (after 0,
        all tokens kept).

    Raises:
        PlanError: the text is wrong; the message says what is wrong and what is allowed.
    """
    name, colon, options = (part.strip() for part in text.partition(":"))
    if name not in POLICIES:
        raise PlanError(f"{text!r}: unknown policy {name!r}; there are {', '.join(POLICIES)}")
    if colon and not options:
        raise PlanError(
            f"{text!r}: nothing after the colon; write for instance {name}:{_EXAMPLES[name]}"
        )
    values = _options(text, options, _ATP_KEYS if name == ATP else _KEYS)
    if name == ATP:
        own = parse_budget(values["budget"]) if "budget" in values else budget
        return CutSpec(after=0, policy=ATP, budget=own)
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


def _options(text: str, options: str, keys: Sequence[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for item in options.split(",") if options else []:
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in keys:
            raise PlanError(f"{text!r}: unknown key {key!r}; there are {', '.join(keys)}")
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


def parse_plan(
    policy: PolicyLike, *, keep: float | None = None, budget: Budget | None = None
) -> tuple[CutSpec, ...]:
    """A plan in any form -> its cuts.

    Args:
        policy: one cut, several cuts, or None for no pruning; as text or CutSpec.
        keep: the fraction to keep where a text states none.
        budget: the budget of atp where atp has none yet; a budget without a policy means atp.

    Raises:
        PlanError: see parse_policy; or a budget is given for a plan without atp.
    """
    if policy is None:
        return () if budget is None else (CutSpec(0, ATP, budget=budget),)
    items = [policy] if isinstance(policy, (str, CutSpec)) else list(policy)
    plan = tuple(
        item if isinstance(item, CutSpec) else parse_policy(item, keep=keep) for item in items
    )
    if budget is None:
        return plan
    if not uses_atp(plan):
        raise PlanError(
            f"a budget is for policy {ATP}, and this plan is {plan_text(plan)}; "
            f"leave the budget out, or choose {ATP}"
        )
    return tuple(
        replace(cut, budget=budget) if cut.policy == ATP and cut.budget is None else cut
        for cut in plan
    )


def uses_atp(plan: Sequence[CutSpec]) -> bool:
    """Whether the plan needs a sidecar."""
    return any(cut.policy == ATP for cut in plan)


def plan_text(plan: Sequence[CutSpec]) -> str:
    """A plan as one line for rows and tables: cuts joined by ``+``, or "none"; "atp" once."""
    if plan and all(cut.policy == ATP for cut in plan):
        return str(plan[0])
    cuts = [cut for cut in plan if not _is_nothing(cut)]
    return "+".join(str(cut) for cut in cuts) or "none"


def settle(
    plan: Sequence[CutSpec],
    n_layer: int,
    legal_cuts: Sequence[int],
    atp_cuts: Sequence[int] = (),
) -> tuple[CutSpec, ...]:
    """A plan for one model: fractions become layer counts, cuts come in order of depth.

    A fraction is rounded to the nearest legal cut; a layer count must itself be legal. atp becomes
    one cut for each module of the sidecar.

    Args:
        plan: cuts as the user asked for them.
        n_layer: depth of the model.
        legal_cuts: layer counts after which the model can be cut; 0 is always legal.
        atp_cuts: layer counts after which the sidecar's modules sit; () without a sidecar.

    Raises:
        PlanError: a cut is out of range or at a place that cannot be cut; two cuts are at one
            place; atp is asked for without a sidecar, or together with another policy.
    """
    if uses_atp(plan):
        return _settle_atp(plan, atp_cuts)
    settled = [_settle_one(cut, n_layer, legal_cuts) for cut in plan if not _is_nothing(cut)]
    settled.sort(key=lambda cut: cut.after)
    for first, second in pairwise(settled):
        if first.after == second.after:
            raise PlanError(
                f"two cuts after {first.after} layers ({first} and {second}); "
                "each needs its own place"
            )
    return tuple(settled)


def _settle_atp(plan: Sequence[CutSpec], atp_cuts: Sequence[int]) -> tuple[CutSpec, ...]:
    others = [str(cut) for cut in plan if cut.policy != ATP]
    if others:
        raise PlanError(
            f"{ATP} brings the cuts it was trained for and stands alone; leave {others[0]} out"
        )
    if not atp_cuts:
        raise PlanError(
            f"policy {ATP} needs a sidecar, the thresholds trained for this model; "
            "give its file (--atp FILE, or atp= in Python), or choose another policy"
        )
    settled = tuple(CutSpec(after, ATP, budget=plan[0].budget) for after in atp_cuts)
    if len(plan) > 1 and tuple(plan) != settled:
        raise PlanError(f"{' and '.join(map(str, plan))}: give {ATP} once")
    return settled


def resolve(plan: Sequence[CutSpec], n_layer: int, legal_cuts: Sequence[int]) -> list[Cut]:
    """The plan in the engine's form; see :func:`settle` for the rules and errors.

    Not for the policy atp: those cuts come from the engine, which holds the sidecar
    (``Engine.atp_plan``).
    """
    return [
        Cut(int(cut.after), cut.policy, cut.keep, cut.seed, needs=cut.needs)
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
