"""A LLaVA-1.5 folder -> the model with modules in it, and its data."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from atp_cpp.errors import AtpError, ModelError
from atp_cpp.train.data import Batches, Item, load_items
from atp_cpp.train.insert import AtpLlava
from atp_cpp.train.options import TrainOptions
from atp_cpp.train.spec import AtpSpec, default_cuts

SET_ASIDE = 50  # images watched where no file names them, at most
SET_ASIDE_SHARE = 0.05
WATCHED_QUESTIONS = 10  # of an image


def torch_dtype(name: str) -> torch.dtype:
    """f32 or bf16 -> torch's."""
    return {"f32": torch.float32, "bf16": torch.bfloat16}[name]


def pick_device(name: str) -> torch.device:
    """A device by torch's name; "auto" is a GPU if there is one, else the CPU.

    Raises:
        AtpError: torch knows no such device, or has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise AtpError(f"--device {name}: torch cannot use it: {reason[:200]}") from error
    return device


def load_model(options: TrainOptions) -> tuple[AtpLlava, torch.dtype]:
    """The checkpoint with fresh modules, and the type its weights are stored in.

    Raises:
        ModelError: not a LLaVA-1.5 checkpoint, or cuts it does not have.
    """
    config = _read_config(options.model)
    try:
        model: Any = LlavaForConditionalGeneration.from_pretrained(options.model, dtype="auto")
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{options.model}: cannot be loaded: {reason[:300]}") from error
    stored: torch.dtype = model.dtype
    n_layer = model.config.text_config.num_hidden_layers
    cuts = options.cuts or default_cuts(n_layer)
    if list(cuts) != sorted(set(cuts)) or not cuts or not 1 <= cuts[0] <= cuts[-1] < n_layer:
        raise ModelError(
            f"expected --cuts to be ascending layer counts from 1 to {n_layer - 1}, got "
            f"{','.join(map(str, cuts)) or 'none'}"
        )
    shares = (1.0, *options.fixed, 0.0)
    if options.fixed and (len(options.fixed) != len(cuts) or sorted(shares)[::-1] != list(shares)):
        raise ModelError(
            f"expected fixed to be {len(cuts)} shares in 0 … 1, none above the one before, got "
            f"{options.fixed}"
        )
    torch.manual_seed(options.seed)
    spec = AtpSpec(
        cuts=tuple(cuts),
        score_norm=options.score_norm,
        divisor=options.divisor,
        score=options.score,
        rule=options.rule,
        n_bins=options.n_bins,
        n_hidden=options.n_hidden,
        fixed=options.fixed,
    )
    side = config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]
    return AtpLlava(model.float(), spec, (side, side)), stored


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder}: expected a folder with a Hugging Face checkpoint (config.json): {error}"
        ) from error
    if config.get("model_type") != "llava":
        raise ModelError(
            f"{path}: expected a LLaVA-1.5 checkpoint (model_type llava, as llava-hf's), got "
            f"model_type {config.get('model_type')!r}"
        )
    for name in ("image_size", "patch_size"):
        if not isinstance(config.get("vision_config", {}).get(name), int):
            raise ModelError(f"{path}: vision_config has no {name}")
    return config


def load_data(options: TrainOptions, processor: Any) -> tuple[Batches, Batches]:
    """(training batches, held-out batches).

    Without a file of held-out questions 5 % of the items, at most 50, are set aside by the seed.
    """
    items = load_items(options.data, options.image_dir)
    if options.watch is not None:
        held_out = load_items(options.watch, options.image_dir)
    else:
        items, held_out = set_aside(items, options.seed)
    training = Batches(
        items,
        processor,
        images_per_batch=options.images_per_batch,
        questions_per_image=options.questions_per_image,
        seed=options.seed,
    )
    watching = Batches(
        held_out,
        processor,
        images_per_batch=options.images_per_batch,
        questions_per_image=WATCHED_QUESTIONS,
        seed=options.seed,
        shuffle=False,
    )
    return training, watching


def set_aside(items: list[Item], seed: int) -> tuple[list[Item], list[Item]]:
    """(to train on, to watch): no image on both sides.

    Raises:
        AtpError: there is only one image.
    """
    images = sorted({item.images[0] for item in items})
    if len(images) < 2:
        raise AtpError("expected questions about at least two images: one is held out to watch")
    count = max(1, min(SET_ASIDE, round(SET_ASIDE_SHARE * len(images))))
    chosen = set(random.Random(seed).sample(images, count))
    return (
        [item for item in items if item.images[0] not in chosen],
        [item for item in items if item.images[0] in chosen],
    )
