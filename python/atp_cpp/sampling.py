"""How the text of a caption is drawn, and what it must look like. Checked before loading."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from atp_cpp._core import check_grammar
from atp_cpp.errors import AtpError
from atp_cpp.json_schema import grammar_of


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
        grammar: what the text must follow, in llama.cpp's GBNF; its first rule is "root". "" for
            any text.
        json_schema: the same as the text of a JSON schema; see ``atp_cpp.json_schema``.
        stop_on_repetition: whether a loop ends the caption: the same up to 64 tokens, word for
            word, three times in a row and over at least 64 tokens. The text keeps its first round.
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
        }
