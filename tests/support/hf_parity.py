"""One checkpoint twice: as transformers computes it, and as the engine does after conversion."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atp_cpp import _core as core
from support.rig import EXACT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
MARKER = "<__media__>"
OPTIONS: dict[str, Any] = {"n_ctx": 2048, "n_threads": 1, **EXACT}


@dataclass(frozen=True)
class Pair:
    """A model on both sides.

    Attributes:
        family: one of hf_models.FAMILIES.
        model: transformers', in F32.
        processor: transformers' image processor, by Pillow.
        text: the language model, F32.
        mmproj: the vision part, F32.
    """

    family: str
    model: PreTrainedModel
    processor: Any
    text: Path
    mmproj: Path

    def engine(self) -> core.Engine:
        """Ours, in F32 throughout."""
        return core.Engine(str(self.text), str(self.mmproj), self_test=False, **OPTIONS)

    def prepare(self, *pixels: Pixels) -> dict[str, Any]:
        """What transformers' model takes of the images of a prompt."""
        images: Any = [Image.fromarray(array) for array in pixels]
        if self.family == "smolvlm":
            images = [images]
        batch = self.processor(images, return_tensors="pt")
        wanted = ("pixel_values", "image_grid_thw", "pixel_attention_mask")
        return {name: batch[name] for name in wanted if name in batch}

    def features(self, pixels: Pixels) -> Floats:
        """transformers' projected features, [n_image_tokens, width of the engine's rows].

        Qwen3-VL's deepstack features stand beside each other, as llama.cpp takes them.
        """
        import torch

        with torch.no_grad():
            out = self.model.get_image_features(**self.prepare(pixels))
        deeper = getattr(out, "deepstack_features", None) or ()
        return np.concatenate([_rows(part) for part in (out.pooler_output, *deeper)], axis=1)

    def inputs(self, tokens: list[int], *pixels: Pixels) -> dict[str, Any]:
        """Arguments of the model's forward for the rows of a Sequence (-1: an image token)."""
        import torch

        image_token = self.model.config.image_token_id
        ids = torch.tensor([[image_token if token < 0 else token for token in tokens]])
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.prepare(*pixels)}
        of_image = (ids == image_token).long()
        if self.family.startswith("qwen"):
            given["mm_token_type_ids"] = of_image
        if self.family == "gemma3":
            given["token_type_ids"] = of_image
        return given

    def rows(self, like: core.Sequence, features: Floats) -> core.Sequence:
        """The rows of a Sequence with transformers' features in place of the engine's."""
        seq = core.Sequence(features.shape[1])
        tokens, grids, first = list(like.tokens), iter(like.grids), 0
        while seq.n_rows < like.n_rows:
            token = tokens[seq.n_rows]
            if token >= 0:
                seq.add_text([token])
                continue
            grid = next(grids)
            part = features[first : first + grid[0] * grid[1]]
            first += len(part)
            if self.family.startswith("qwen"):
                y, x = np.divmod(np.arange(len(part)), grid[1])
                where = np.stack([0 * y, y, x, 0 * y], axis=1) + seq.n_pos
                seq.add_image(part, grid=grid, pos=where.astype(np.int32), n_pos=max(grid))
            else:
                seq.add_image(part, grid=grid, causal=self.family != "gemma3")
        return seq


def _rows(features: Any) -> Floats:
    """[..., width], or a list of such per image, as [n, width]."""
    parts = features if isinstance(features, (list, tuple)) else [features]
    return np.concatenate([part.reshape(-1, part.shape[-1]).numpy() for part in parts])


def decoder(path: Path) -> core.Decoder:
    """Of a text model, in F32 but for its weights."""
    return core.Decoder(core.ModelParams(str(path), **OPTIONS))


def prefill(of: core.Decoder, seq: core.Sequence) -> Floats:
    """Logits of every row, [n_rows, n_vocab]."""
    logits = of.prefill(seq, n_predict=80, all_logits=True)["logits"]
    return np.asarray(logits).reshape(-1, of.n_vocab)


def continuation(
    of: core.Decoder, first: Floats, pos: int, n: int, said: list[int] | None = None
) -> tuple[list[int], Floats]:
    """Decodes greedily, or along the tokens `said`, from the last row's logits.

    Returns:
        The likeliest token of each step, and the logits it was taken from, [n, n_vocab].
    """
    tokens: list[int] = []
    rows = [first]
    for step in range(n):
        tokens.append(int(rows[-1].argmax()))
        taken = tokens[-1] if said is None else said[step]
        rows.append(of.decode([(0, taken, pos + step)]).ravel())
    return tokens, np.array(rows[:n])


def same_but_for_near_ties(exact: Floats, rounded: Floats) -> float:
    """Holds a quantised model's next tokens against those of the model in F32.

    Of random weights the lead of the likeliest token is often within what Q8_0 rounds: another
    token may win only where that lead is below six times the rounding's deviation.

    Args:
        exact: logits in F32 along one text, [n, n_vocab].
        rounded: the quantised model's along the same text.

    Returns:
        The share of steps with the same token.
    """
    noise = (rounded - exact).std()
    assert noise < 0.05 * exact.std()
    leads = np.diff(np.sort(exact, axis=1)[:, -2:], axis=1).ravel()
    same = exact.argmax(axis=1) == rounded.argmax(axis=1)
    assert same[leads > 6 * noise].all()
    return float(same.mean())


def cosine(expected: Floats, measured: Floats) -> Floats:
    """Of each row, [n]."""
    assert expected.shape == measured.shape
    a, b = expected.astype(np.float64), measured.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / norms)


def photograph(height: int, width: int, seed: int = 3) -> Pixels:
    """Smooth colours, hard edges and grain, through JPEG."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.zeros((height, width, 3))
    for channel in range(3):
        for k in range(1, 9):
            fy, fx = rng.normal(size=2)
            wave = fx * k * x / width + fy * k * y / height
            pixels[..., channel] += np.sin(2 * np.pi * wave + rng.uniform(0, 6)) / k
    pixels = (pixels - pixels.min()) / np.ptp(pixels) * 255
    for _ in range(12):
        centre = rng.uniform(0, (height, width))
        radius = rng.uniform(0.05, 0.25) * min(height, width)
        inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        pixels[inside] = rng.integers(0, 256, 3)
    pixels += rng.normal(scale=6, size=pixels.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
    return np.asarray(Image.open(file).convert("RGB"))
