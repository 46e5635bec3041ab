"""How the text of a caption is drawn, and which form it must have. Checked before loading."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from atp_cpp._core import check_grammar
from atp_cpp.errors import AtpError
from atp_cpp.options.json_schema import grammar_of
from atp_cpp.options.texts import brief, check_number, check_text, check_whole

_PENALTIES = ("repeat_penalty", "frequency_penalty", "presence_penalty")
_LATER = (*_PENALTIES, "repeat_last_n")  # fields that the first versions did not have


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How the text is drawn.

    Attributes:
        n_predict: most tokens of the answer, >= 1.
        temp: divides the logits before tokens are drawn; 0 is greedy.
        top_k: draw among the k likeliest tokens; 0 for all tokens.
        top_p: draw among the likeliest tokens that make up this probability, in (0, 1].
        min_p: draw among the tokens that have at least this share of the likeliest token's
            probability, in [0, 1].
        seed: seed of the random draw of tokens.
        stop: texts that end the caption; the caption does not contain them.
        grammar: grammar that the text must follow, in llama.cpp's GBNF; its first rule is "root".
            "" for any text.
        json_schema: text of a JSON schema that the text must follow; "" for any text. See
            ``atp_cpp.options.json_schema``.
        stop_on_repetition: whether a loop ends the caption. A loop is the same sequence of up to 64
            tokens three times in a row or more, over at least 64 tokens. The text keeps the first
            round of the loop.
        repeat_penalty: divides the positive logits, and multiplies the negative logits, of tokens
            that the answer contains; above 0, 1 for no penalty.
        frequency_penalty: taken off the logit of a token for each time that the answer contains
            the token.
        presence_penalty: taken once off the logit of each token that the answer contains.
        repeat_last_n: the penalties look at this many last tokens of the answer; 0 for no penalty.
    """

    n_predict: int = 128
    temp: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int = 0
    stop: tuple[str, ...] = ()
    grammar: str = ""
    json_schema: str = ""
    stop_on_repetition: bool = False
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64

    def __post_init__(self) -> None:
        """Raises AtpError, with the name of the field, for a value that cannot be used."""
        for name in ("n_predict", "top_k", "seed", "repeat_last_n"):
            check_whole(name, getattr(self, name))
            object.__setattr__(self, name, int(getattr(self, name)))  # JSON takes no NumPy integers
        for name in (
            "temp",
            "top_p",
            "min_p",
            "repeat_penalty",
            "frequency_penalty",
            "presence_penalty",
        ):
            check_number(name, value := getattr(self, name))
            if not isinstance(value, (int, float)):
                object.__setattr__(self, name, float(value))
        if isinstance(self.stop, str):
            raise AtpError(f"stop: expected several texts, ({brief(self.stop)},), got one")
        for text in (*self.stop, self.grammar, self.json_schema):
            check_text("a stop text, grammar or JSON schema", text)
        checks = (
            (self.n_predict >= 1, f"n_predict must be at least 1, got {brief(self.n_predict)}"),
            (
                math.isfinite(self.temp) and self.temp >= 0,
                f"temp must be 0 (greedy) or more, got {brief(self.temp)}",
            ),
            (self.top_k >= 0, f"top_k must be 0 (all) or more, got {brief(self.top_k)}"),
            (0 < self.top_p <= 1, f"top_p must be above 0 and at most 1, got {brief(self.top_p)}"),
            (0 <= self.min_p <= 1, f"min_p must lie in 0 … 1, got {brief(self.min_p)}"),
            (0 <= self.seed < 2**32, f"seed must lie in 0 … 2^32 - 1, got {brief(self.seed)}"),
            *_penalties(self),
            (all(self.stop), "a stop text must not be empty"),
            (
                not (self.grammar and self.json_schema),
                "a grammar and a JSON schema were given; the text can follow one of them",
            ),
        )
        for holds, message in checks:
            if not holds:
                raise AtpError(message)
        if grammar := self.grammar or (grammar_of(self.json_schema) if self.json_schema else ""):
            check_grammar(grammar)

    def facts(self) -> dict[str, Any]:
        """The fields that the hash of a configuration contains.

        Fields that the first versions did not have are left out while they have their defaults, so
        that the hash of older rows stays the same.
        """
        facts = asdict(self)
        for field in fields(self):
            if field.name in _LATER and facts[field.name] == field.default:
                del facts[field.name]
        return facts

    def engine_options(self) -> dict[str, Any]:
        """The keyword arguments of Engine.generate and Engine.start."""
        return {
            "n_predict": self.n_predict,
            "temp": self.temp,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "seed": self.seed,
            "stop": list(self.stop),
            "grammar": grammar_of(self.json_schema) if self.json_schema else self.grammar,
            "stop_on_repetition": self.stop_on_repetition,
            "repeat_penalty": self.repeat_penalty,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "repeat_last_n": self.repeat_last_n,
        }


def _penalties(draw: SamplingConfig) -> Iterator[tuple[bool, str]]:
    """For each rule: whether the rule is met, and what is wrong if not."""
    yield (
        math.isfinite(draw.repeat_penalty) and draw.repeat_penalty > 0,
        f"repeat_penalty must be above 0 (1 for none), got {brief(draw.repeat_penalty)}",
    )
    for name in ("frequency_penalty", "presence_penalty"):
        value = getattr(draw, name)
        yield (
            math.isfinite(value),
            f"{name} must be a finite number (0 for none), got {brief(value)}",
        )
    yield (
        0 <= draw.repeat_last_n < 2**31,
        f"repeat_last_n must be 0 (none) or more, got {brief(draw.repeat_last_n)}",
    )
