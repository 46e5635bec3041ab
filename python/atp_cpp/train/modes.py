"""What is trained besides the modules: nothing, the whole language model, or low-rank adapters."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from atp_cpp.train.insert import AtpLlava


class LoraLinear(nn.Module):
    """A frozen linear layer with a trained low-rank addition, zero at the start.

    Low-rank adaptation (Hu et al., arXiv 2106.09685), scaled by 2 as with its alpha = 2 * rank.
    """

    SCALE = 2.0

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        device = base.weight.device
        self.down = nn.Linear(base.in_features, rank, bias=False, device=device)
        self.up = nn.Linear(rank, base.out_features, bias=False, device=device)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        added: Tensor = self.up(self.down(x.to(self.down.weight.dtype))) * self.SCALE
        base: Tensor = self.base(x)
        return base + added.to(base.dtype)

    @torch.no_grad()
    def added(self) -> Tensor:
        """What the adapter adds to the layer's weight (out, in), float32."""
        return self.SCALE * (self.up.weight.float() @ self.down.weight.float())

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The linear layer that computes the same."""
        self.base.weight.copy_(self.base.weight.float() + self.added())
        return self.base


def prepare(llava: AtpLlava, mode: str, lora_rank: int, frozen_dtype: torch.dtype) -> None:
    """Sets which parameters are trained; frozen ones are kept in `frozen_dtype`.

    thresholds: the modules alone. full: the language model and its head, too. lora: adapters on
    every linear layer of the decoder, and its norms (so that the sidecar's fingerprint tells the
    tuned model from the one it came from).
    """
    llava.requires_grad_(False)
    llava.heads.requires_grad_(True)
    if mode == "full":
        llava.language.requires_grad_(True)
        llava.model.get_output_embeddings().requires_grad_(True)
    elif mode == "lora":
        for parent, name, linear in list(_linears(llava.language)):
            setattr(parent, name, LoraLinear(linear, lora_rank))
        for name, parameter in llava.language.named_parameters():
            parameter.requires_grad_("norm" in name or ".down." in name or ".up." in name)
    for parameter in llava.parameters():
        parameter.data = parameter.data.to(
            torch.float32 if parameter.requires_grad else frozen_dtype
        )
    llava.eval()  # no dropout anywhere, as in LLaVA's own tuning


def trained(llava: AtpLlava) -> dict[str, nn.Parameter]:
    """Name -> parameter, of everything that is trained."""
    return {name: p for name, p in llava.named_parameters() if p.requires_grad}


def adapters(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name of a weight without its adapter, what the adapter adds to it), of all below `root`."""
    for name, module in root.named_modules():
        if isinstance(module, LoraLinear):
            yield f"{name}.weight", module.added()


def merge_adapters(llava: AtpLlava) -> None:
    """Turns adapters into plain weights; the model computes the same without them."""
    for parent, name, lora in list(_loras(llava.language)):
        setattr(parent, name, lora.merged())


def _linears(root: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in root.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                yield parent, name, child


def _loras(root: nn.Module) -> Iterator[tuple[nn.Module, str, LoraLinear]]:
    for parent in root.modules():
        for name, child in parent.named_children():
            if isinstance(child, LoraLinear):
                yield parent, name, child
