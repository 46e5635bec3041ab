"""What is trained besides the modules: nothing, the whole language model, or low-rank adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from atp_cpp.errors import AtpError
from atp_cpp.train.insert import AtpLlava

ADAPTER = "default"  # peft's name for the only one


def prepare(llava: AtpLlava, mode: str, lora_rank: int, frozen_dtype: torch.dtype) -> None:
    """Sets which parameters are trained; frozen ones are kept in `frozen_dtype`.

    thresholds: the modules alone. full: the language model and its head, too. lora: adapters on
    every linear layer of the decoder, and its norms (so that the sidecar's fingerprint tells the
    tuned model from the one it came from).

    Raises:
        AtpError: lora without peft.
    """
    llava.requires_grad_(False)
    llava.heads.requires_grad_(True)
    if mode == "full":
        llava.language.requires_grad_(True)
        llava.model.get_output_embeddings().requires_grad_(True)
    elif mode == "lora":
        _insert_adapters(llava.language, lora_rank)
        for name, parameter in llava.language.named_parameters():
            parameter.requires_grad_("norm" in name or ".lora_" in name)
    for parameter in llava.parameters():
        parameter.data = parameter.data.to(
            torch.float32 if parameter.requires_grad else frozen_dtype
        )
    llava.eval()  # no dropout anywhere, as in LLaVA's own tuning


def trained(llava: AtpLlava) -> dict[str, nn.Parameter]:
    """Name -> parameter, of everything that is trained."""
    return {name: p for name, p in llava.named_parameters() if p.requires_grad}


def _insert_adapters(root: nn.Module, rank: int) -> None:
    """Low-rank adaptation (Hu et al., arXiv 2106.09685) by peft, alpha = 2 * rank."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise AtpError("--mode lora needs peft; pip install 'atp_cpp[train]'") from None
    names = [name for name, module in root.named_modules() if isinstance(module, nn.Linear)]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names)
    inject_adapter_in_model(config, root, adapter_name=ADAPTER)


def _adapted(root: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, peft's layer) of every linear layer with an adapter."""
    for name, module in root.named_modules():
        if hasattr(module, "get_delta_weight"):
            yield name, module


def adapters(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name of a weight without its adapter, what the adapter adds to it), of all below `root`."""
    for name, layer in _adapted(root):
        yield f"{name}.weight", layer.get_delta_weight(ADAPTER).detach()


def merge_adapters(llava: AtpLlava) -> None:
    """Turns adapters into plain weights; the model computes the same without them."""
    for name, layer in list(_adapted(llava.language)):
        layer.merge()
        llava.language.set_submodule(name, layer.get_base_layer())
