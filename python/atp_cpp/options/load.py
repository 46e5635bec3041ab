"""How a model is loaded: devices, threads, sizes, and the types of its caches."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["LoadOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """The keyword arguments of ``Engine``, with the defaults of ``Captioner``.

    Attributes:
        n_gpu_layers: layers on the accelerator; -1 for all, 0 for none.
        n_ctx: positions that a prompt and its answer may take together.
        n_ubatch: rows computed at once.
        n_threads: CPU threads; 0 lets the engine choose.
        n_threads_encode: more CPU threads, for the vision encoder alone; 0: it uses n_threads.
        flash_attn: "auto", "on" or "off".
        type_k: element type of the key cache.
        type_v: element type of the value cache.
        self_test: compare the staged decoder with plain llama.cpp at load.
    """

    n_gpu_layers: int = -1
    n_ctx: int = 4096
    n_ubatch: int = 512
    n_threads: int = 0
    n_threads_encode: int = 0
    flash_attn: str = "auto"
    type_k: str = "f16"
    type_v: str = "f16"
    self_test: bool = True

    def engine_options(self) -> dict[str, Any]:
        """The keyword arguments of Engine."""
        return asdict(self)

    def rounding(self) -> dict[str, str]:
        """The options that change how numbers are rounded, and so can change a caption."""
        return {"flash_attn": self.flash_attn, "type_k": self.type_k, "type_v": self.type_v}
