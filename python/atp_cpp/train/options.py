"""What a training run is asked to do, and how its rates and temperature change on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from atp_cpp.errors import AtpError

MODES = ("thresholds", "full", "lora")
DTYPES = ("f32", "bf16")
SCORES = ("avg", "self", "cross")
RULES = ("union", "redundant", "spatial")


@dataclass(frozen=True)
class TrainOptions:
    """A run's settings.

    Attributes:
        model: folder of a LLaVA-1.5 checkpoint in Hugging Face's form.
        data: training questions, see ``atp_cpp.train.items``.
        out: folder for checkpoint, curve and result.
        image_dir: folder that relative image paths start from; the data file's if None.
        watch: held-out questions; None sets some of `data` aside.
        name: of the base model, for the sidecar; the folder's name if "".
        budget: layer-mean fraction of the image tokens to aim at.
        mode: thresholds (language model frozen), full (trained too) or lora (adapters and norms).
        cuts: layer counts the modules stand after; () for the reference's, scaled to the depth.
        score_norm: how scores are normalised: none, relative or minmax; see ``AtpSpec``.
        divisor: what S_self is divided by: rows_visible or rows_all; see ``AtpSpec``.
        score: the score that is compared with theta_r: avg, self or cross; see ``AtpSpec``.
        rule: which thresholds can keep a token: union, redundant or spatial; see ``AtpSpec``.
        fixed: ablation: share of the image tokens to keep after each cut instead of learned
            thresholds. It trains the language model alone, and there is no sidecar for it.
        n_bins: features of each score.
        n_hidden: width of a module.
        steps: steps to train for; None for no limit.
        minutes: minutes to train for; None for no limit. If steps and minutes are both None, the
            run makes one pass over the data.
        images_per_batch: distinct images in a step.
        questions_per_image: questions about each of these images.
        lr_heads: peak learning rate of the modules.
        lr_llm: peak learning rate of the language model or its adapters.
        lambda_atp: weight of sum_l l * N_l / N.
        lambda_target: weight of |mean tokens - budget| as a fraction of N.
        lambda_align: weight of the distance between the scores and the attention of later layers,
            during the first `align` share of the run.
        align: first share of the run, in which nothing is dropped and scores are aligned.
        warmup: steps until the peak rate.
        cooldown: last share of the run in which rates fall along a cosine to 2 %.
        clip: norm that gradients are clipped to.
        temperature: of the soft masks at the start; it rises geometrically to `temperature_end`.
        temperature_end: reached when the hard share begins.
        hard: last share of the run with hard masks forward and soft gradients.
        budget_start: the budget at the start of the run, if it is above `budget`; the budget then
            falls to `budget` during the first `ease` share of the run.
        ease: first share of the run, in which the budget falls from `budget_start` to `budget`.
        drop_below: rows whose soft mask is smaller leave the sequence.
        lora_rank: width of the adapters.
        dtype: f32, or bf16 for autocast (frozen weights are then kept in bfloat16).
        device: torch's name; "auto" takes a GPU if there is one.
        seed: of modules, order and choice of questions.
        save_minutes: a checkpoint is written this often.
        watch_every: steps between two looks at the held-out questions.
    """

    model: Path
    data: Path
    out: Path
    image_dir: Path | None = None
    watch: Path | None = None
    name: str = ""
    budget: float = 0.25
    mode: str = "full"
    cuts: tuple[int, ...] = ()
    score_norm: str = "relative"
    divisor: str = "rows_visible"
    score: str = "avg"
    rule: str = "union"
    fixed: tuple[float, ...] = ()
    n_bins: int = 64
    n_hidden: int = 64
    steps: int | None = None
    minutes: float | None = None
    images_per_batch: int = 4
    questions_per_image: int = 4
    lr_heads: float = 1e-3
    lr_llm: float = 1.5e-4
    lambda_atp: float = 0.01
    lambda_target: float = 2.0
    lambda_align: float = 3.0
    align: float = 0.0
    warmup: int = 30
    cooldown: float = 0.4
    clip: float = 1.0
    temperature: float = 20.0
    temperature_end: float = 100.0
    hard: float = 0.25
    budget_start: float = 0.25
    ease: float = 0.25
    drop_below: float = 0.05
    lora_rank: int = 16
    dtype: str = "f32"
    device: str = "auto"
    seed: int = 0
    save_minutes: float = 10.0
    watch_every: int = 200

    def __post_init__(self) -> None:
        """Refuses settings that cannot be meant.

        Raises:
            AtpError: naming the setting.
        """
        _one_of("mode", self.mode, MODES)
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("score", self.score, SCORES)
        _one_of("rule", self.rule, RULES)
        if not 0 < self.budget <= 1:
            raise AtpError(f"expected --budget to be a fraction in (0, 1], got {self.budget}")
        if not 0 <= self.align < 1:
            raise AtpError(f"expected --align to be a share from 0 to below 1, got {self.align}")
        if self.align and self.mode == "thresholds":
            raise AtpError("--align teaches the language model; mode thresholds leaves it as it is")
        if not 0 <= self.hard <= 1:
            raise AtpError(f"expected --hard to be a share from 0 to 1, got {self.hard}")
        if self.minutes is not None and self.minutes < 0:
            raise AtpError(f"expected --minutes of at least 0, got {self.minutes}")
        if self.fixed and (self.mode == "thresholds" or self.rule != "redundant"):
            raise AtpError(
                "fixed shares learn no thresholds: expected mode full or lora and rule redundant, "
                f"got mode {self.mode} and rule {self.rule}"
            )
        least = {"steps": 0, "images_per_batch": 1, "questions_per_image": 1, "lora_rank": 1}
        for name, minimum in {**least, "watch_every": 1, "warmup": 0}.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise AtpError(f"expected {_flag(name)} of at least {minimum}, got {value}")
        for name in ("lr_heads", "lr_llm", "lambda_atp", "lambda_target"):
            if not 0 <= getattr(self, name) < math.inf:
                raise AtpError(f"expected {_flag(name)} of at least 0, got {getattr(self, name)}")

    def rate(self, step: int, progress: float) -> float:
        """Share of the peak learning rates at `step` (from 0), `progress` of the run done."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if progress <= 1 - self.cooldown:
            return 1.0
        share = min(1.0, (progress - 1 + self.cooldown) / self.cooldown)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))

    def target(self, progress: float) -> float:
        """The budget aimed at when `progress` of the run is done; our decision."""
        if progress >= self.ease:
            return self.budget
        start = max(self.budget, self.budget_start)
        return start + (self.budget - start) * progress / self.ease

    def mask(self, progress: float) -> tuple[float, bool]:
        """(temperature, whether masks are hard forward) at `progress` of the run.

        Restatements of ATP-LLaVA give 10 or 100; the rise from 20 and the hard share are ours:
        what is trained last is what runs later.
        """
        soft = 1 - self.hard
        share = min(1.0, progress / soft) if soft > 0 else 1.0
        ratio = self.temperature_end / self.temperature
        return self.temperature * ratio**share, progress > soft

    def as_plain(self) -> dict[str, object]:
        """As a dictionary of what JSON knows."""
        out: dict[str, object] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Path):
                value = str(value)
            out[field.name] = list(value) if isinstance(value, tuple) else value
        return out


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _one_of(name: str, value: str, names: tuple[str, ...]) -> None:
    if value not in names:
        raise AtpError(f"expected {_flag(name)} to be one of {', '.join(names)}, got {value!r}")
