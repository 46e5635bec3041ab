"""The table of docs/guide/convert.md: converted checkpoints against transformers, family by family.

    PYTHONPATH=python:tests python benchmarks/convert_parity.py        # about two minutes

The checkpoints, images and prompts are those of the tests (tests/convert/test_llava.py and
tests/convert/test_families.py), which hold the bounds. Needs torch, transformers and pytest.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import test_convert_families as families
import test_convert_llava as llava

from atp_cpp import _core as core
from support.convert_many import convert_many
from support.hf_llava import KINDS, write_llava
from support.hf_models import write_tiny
from support.hf_parity import (
    Pair,
    continuation,
    cosine,
    decoder,
    photograph,
    prefill,
    same_but_for_near_ties,
)
from support.rig import nmse


@dataclass
class Row:
    """What was measured of one family."""

    name: str
    features: float = 0.0  # largest NMSE
    cosine: float = 1.0  # smallest
    logits: float = 0.0  # largest NMSE
    same_reply: bool = False
    q8_0: float = 0.0  # share of steps

    def add_features(self, expected: np.ndarray, measured: np.ndarray) -> None:
        self.features = max(self.features, nmse(expected, measured))
        self.cosine = min(self.cosine, cosine(expected, measured).min())

    def __str__(self) -> str:
        reply = "same" if self.same_reply else "other"
        return (
            f"| {self.name} | {self.features:.1e} | {1 - self.cosine:.1e} | {self.logits:.1e} "
            f"| {reply} | {100 * self.q8_0:.1f} % |"
        )


def measure(
    row: Row, text: Path, seq: core.Sequence, expected: np.ndarray, said: list[int], temp: Path
) -> Row:
    """Logits [n_rows, n_vocab], reply and Q8_0 of one prompt, against transformers' of it."""
    core.quantise(str(text), str(temp / "q8_0.gguf"), "q8_0")
    exact, rounded = decoder(text), decoder(temp / "q8_0.gguf")
    logits = prefill(exact, seq)
    row.logits = max(row.logits, nmse(expected, logits))
    tokens, rows = continuation(exact, logits[-1], seq.n_pos, len(said), said)
    row.same_reply = tokens == said
    _, quantised = continuation(rounded, prefill(rounded, seq)[-1], seq.n_pos, len(said), said)
    row.q8_0 = same_but_for_near_ties(rows, quantised)
    return row


def llava_row(kind: str, temp: Path) -> Row:
    import torch

    model = write_llava(kind, temp / "model", seed=1)
    [files] = convert_many([temp / "model"])
    both = llava.Converted(temp / "model", model, *files)
    row = Row(kind)
    for shape in llava.SHAPES:
        image = llava.picture(shape)
        row.add_features(both.features(image), both.encode(image).embd)
    image = llava.picture(llava.SHAPES[2])
    with torch.no_grad():
        expected = model(**both.inputs(image)).logits[0].numpy()
    return measure(row, both.text, both.encode(image), expected, both.greedy_reply(image), temp)


def family_row(family: str, temp: Path) -> Row:
    import torch
    from transformers import AutoImageProcessor

    model = write_tiny(family, temp / "model")
    [(text, mmproj)] = convert_many([temp / "model"])
    processor = AutoImageProcessor.from_pretrained(temp / "model", backend="pil")
    both = Pair(family, model, processor, text, mmproj)
    row = Row(family)
    engine = both.engine()
    for size in (families.SAME_PIXELS[family], *families.PHOTOGRAPHS):
        pixels = photograph(*size)
        row.add_features(both.features(pixels), engine.encode(families.PROMPT, [pixels]).embd)
    pixels = photograph(*families.SAME_PIXELS[family])
    seq = engine.encode(families.PROMPT, [pixels])
    given = both.inputs(seq.tokens, pixels)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        expected = model(**given).logits[0].numpy()
        said = model.generate(**given, max_new_tokens=64, do_sample=False)
    return measure(row, text, seq, expected, said[0, seq.n_rows :].tolist(), temp)


def main() -> None:
    print("| checkpoint | features, NMSE | 1 - cosine | logits, NMSE | 64 greedy tokens | Q8_0 |")
    print("|---|---:|---:|---:|---|---:|")
    for names, row_of in ((KINDS, llava_row), (families.DECODERS, family_row)):
        for name in names:
            with tempfile.TemporaryDirectory() as temp:
                print(row_of(name, Path(temp)), flush=True)


if __name__ == "__main__":
    main()
