"""A trained model -> ATP_DIR: atp.json and atp.npz, and the checkpoint if it was trained, too."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import LlavaForConditionalGeneration

from atp_cpp.sidecar.sidecar import AtpSidecar, fingerprint_from_arrays
from atp_cpp.train.insert import AtpLlava
from atp_cpp.train.modes import adapters
from atp_cpp.train.options import TrainOptions

MODEL_FOLDER = "model"
_WEIGHTS = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.index.json",
    "*.gguf",
    "*.h5",
    "*.msgpack",
)
# Hugging Face's type of a language model -> GGUF's architecture, where they differ
_ARCHITECTURES = {"mistral": "llama"}


def name_of(options: TrainOptions) -> str:
    """The base model's name."""
    return options.name or options.model.resolve().name


def sidecar_of(
    llava: AtpLlava,
    options: TrainOptions,
    *,
    fingerprint: str,
    kept: tuple[float, ...],
    n_images: int,
) -> AtpSidecar:
    """The modules with everything the engine has to know.

    Args:
        llava: after training.
        options: of the run.
        fingerprint: of the decoder it belongs to.
        kept: share of the image tokens alive after each cut, on held-out questions.
        n_images: trained on.
    """
    text, spec = llava.model.config.text_config, llava.spec
    return AtpSidecar(
        arch=_ARCHITECTURES.get(text.model_type, text.model_type),
        name=f"atp-{name_of(options)}",
        base_name=name_of(options),
        cuts=spec.cuts,
        n_layer=text.num_hidden_layers,
        n_embd=text.hidden_size,
        n_head=text.num_attention_heads,
        fingerprint=fingerprint,
        grid=llava.grid,
        score_norm=spec.score_norm,
        divisor=spec.divisor,
        score=spec.score,
        rule=spec.rule,
        strides=spec.strides,
        lambda_sample=spec.lambda_sample,
        n_bins=spec.n_bins,
        n_hidden=spec.n_hidden,
        activation=spec.activation,
        budget=options.budget,
        mode=options.mode,
        data=f"{options.data.name}, {n_images} images",
        kept=kept,
        tensors=tensors_of(llava),
    )


def tensors_of(llava: AtpLlava) -> dict[str, NDArray[np.float32]]:
    """The modules' arrays under the sidecar's names, float32."""
    out: dict[str, NDArray[np.float32]] = {}
    for cut, head in zip(llava.spec.cuts, llava.heads, strict=True):
        for part in ("proj", "theta_r", "theta_s"):
            for kind, value in getattr(head, part).named_parameters():
                name = f"blk.{cut - 1}.atp_{part}.{kind}"
                out[name] = value.detach().float().cpu().numpy().copy()
    return out


def fingerprint_of(model: Any) -> str:
    """Of the decoder of a LlavaForConditionalGeneration, as its weights are now."""
    language = model.model.language_model
    norms = [language.norm.weight]
    for layer in language.layers:
        norms += [layer.input_layernorm.weight, layer.post_attention_layernorm.weight]
    return fingerprint_from_arrays(norm.detach().float().cpu().numpy() for norm in norms)


@torch.no_grad()
def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Rounds weights to what a file of type `dtype` can hold; their own type stays."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).to(parameter.dtype)


@torch.no_grad()
def tuned_checkpoint(llava: AtpLlava, source: Path, dtype: torch.dtype) -> Any:
    """The source's checkpoint with what was trained put in; adapters must not be merged yet.

    It is read again, so that weights that were frozen (in bfloat16, perhaps) are the source's own.
    """
    model: Any = LlavaForConditionalGeneration.from_pretrained(source, dtype=dtype)
    ours = {name: p for name, p in llava.model.named_parameters() if p.requires_grad}
    added = dict(adapters(llava.model))
    for name, parameter in model.named_parameters():
        if name in ours:
            parameter.copy_(ours[name])
        elif name in added:
            parameter.copy_(parameter.float() + added[name].to(parameter.device))
    return model


def save_checkpoint_folder(model: Any, source: Path, target: Path) -> None:
    """The whole checkpoint in its own form and type, with the source's tokenizer and processor."""
    shutil.copytree(
        source, target, ignore=shutil.ignore_patterns(*_WEIGHTS, ".*"), dirs_exist_ok=True
    )
    model.save_pretrained(target)
