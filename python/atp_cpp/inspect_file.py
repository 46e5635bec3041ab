"""What is in a GGUF file, and what could run: the facts behind ``atp-cpp inspect``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from atp_cpp._core import Engine
from atp_cpp.config import format_cuts
from atp_cpp.errors import ModelError
from atp_cpp.gguf_header import GgufHeader, Value, read_header
from atp_cpp.inspect_sidecar import SidecarFacts, inspect_sidecar
from atp_cpp.model_files import image_spec_of

_INSPECT_CTX = 512  # positions; nothing long is run


@dataclass(frozen=True, slots=True)
class TextModelFacts:
    """A text model.

    Attributes:
        file: its path.
        kind: "text model".
        arch: general.architecture.
        name: general.name.
        n_layer: depth.
        n_embd: width.
        n_vocab: size of the vocabulary.
        n_ctx_train: positions it was trained for.
        n_params: parameters.
        size_bytes: of the tensors.
        has_chat_template: whether the file carries one.
        legal_cuts: layer counts after which image tokens may be dropped.
        can_prune: whether the self-test passed and pruning can run.
        why_not: the reason if it cannot.
    """

    file: str
    kind: str
    arch: str
    name: str
    n_layer: int
    n_embd: int
    n_vocab: int
    n_ctx_train: int
    n_params: int
    size_bytes: int
    has_chat_template: bool
    legal_cuts: list[int]
    can_prune: bool
    why_not: str

    def lines(self) -> list[str]:
        """For a reader."""
        pruning = "yes" if self.can_prune else f"no: {self.why_not}"
        template = "yes" if self.has_chat_template else "no (LLaVA-1.5's form is used)"
        return [
            f"{self.file}: text model" + (f" ({self.name})" if self.name else ""),
            f"  architecture   {self.arch}",
            f"  layers         {self.n_layer}",
            f"  width          {self.n_embd}",
            f"  vocabulary     {self.n_vocab}",
            f"  parameters     {_count(self.n_params)} ({self.size_bytes / 2**20:.1f} MiB)",
            f"  trained for    {self.n_ctx_train} positions",
            f"  chat template  {template}",
            f"  legal cuts     after {format_cuts(self.legal_cuts)} layers",
            f"  pruning        {pruning}",
        ]


@dataclass(frozen=True, slots=True)
class ProjectorFacts:
    """A vision encoder with its projector (an mmproj file).

    Attributes:
        file: its path.
        kind: "vision projector".
        projector: kind of projector, as libmtmd names it.
        name: general.name.
        image_size: px, side of the picture the encoder takes (the largest, if it varies); 0 if not
            said.
        patch_size: px; 0 if not said.
        images: how they are prepared; "" where the file leaves that to llama.cpp.
        n_layer: blocks of the encoder.
        n_embd: width of the encoder.
        width: width of the image tokens it makes: must be the text model's. 0 if the file does not
            say.
        n_params: parameters.
    """

    file: str
    kind: str
    projector: str
    name: str
    image_size: int
    patch_size: int
    images: str
    n_layer: int
    n_embd: int
    width: int
    n_params: int

    def lines(self) -> list[str]:
        """For a reader."""
        return [
            f"{self.file}: vision projector (mmproj)" + (f" ({self.name})" if self.name else ""),
            f"  projector      {self.projector}",
            f"  width          {self.width or 'not said'}: fits text models of this width",
            f"  encoder        {self.n_layer} blocks of width {self.n_embd}",
            f"  image, patch   {self.image_size} px, {self.patch_size} px",
            f"  images         {self.images or 'prepared as llama.cpp does'}",
            f"  parameters     {_count(self.n_params)}",
            "  give it with --mmproj, beside its text model in -m",
        ]


def inspect_file(
    path: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    n_gpu_layers: int = -1,
    n_threads: int = 0,
) -> TextModelFacts | ProjectorFacts | SidecarFacts:
    """Looks into a GGUF file; a text model is loaded and put through the self-test.

    Args:
        path: the file.
        model: text model that a sidecar is compared with.
        n_gpu_layers: for the self-test.
        n_threads: for the self-test; 0 lets the engine choose.

    Raises:
        ModelError: not a GGUF, cut short, nothing llama.cpp can run, or a model to compare with
            what is no sidecar.
    """
    header = read_header(path)
    if header.metadata.get("general.type") == "adapter":
        return inspect_sidecar(path, model=model, n_gpu_layers=n_gpu_layers, n_threads=n_threads)
    if model is not None:
        raise ModelError(
            f"{Path(path)}: not an adapter; -m is for comparing a sidecar with a model"
        )
    if header.arch == "clip":
        return _projector_facts(path, header)
    return _text_model_facts(path, n_gpu_layers, n_threads)


def _text_model_facts(
    path: str | os.PathLike[str], n_gpu_layers: int, n_threads: int
) -> TextModelFacts:
    engine = Engine(
        os.fspath(path), n_gpu_layers=n_gpu_layers, n_threads=n_threads, n_ctx=_INSPECT_CTX
    )
    try:
        info = engine.info
        return TextModelFacts(
            file=os.fspath(path),
            kind="text model",
            arch=info.arch,
            name=info.name,
            n_layer=info.n_layer,
            n_embd=info.n_embd,
            n_vocab=info.n_vocab,
            n_ctx_train=info.n_ctx_train,
            n_params=info.n_params,
            size_bytes=info.size_bytes,
            has_chat_template=bool(info.chat_template),
            legal_cuts=list(info.legal_cuts),
            can_prune=info.can_prune,
            why_not=info.why_not,
        )
    finally:
        engine.close()


def _projector_facts(path: str | os.PathLike[str], header: GgufHeader) -> ProjectorFacts:
    meta = header.metadata
    if not meta.get("clip.has_vision_encoder", "clip.vision.block_count" in meta):
        raise ModelError(
            f"{Path(path)}: a projector without a vision encoder (audio?); it cannot see"
        )
    spec = image_spec_of(Path(path))
    n_params = 0
    for shape in header.shapes.values():
        size = 1
        for extent in shape:
            size *= extent
        n_params += size
    return ProjectorFacts(
        file=os.fspath(path),
        kind="vision projector",
        projector=str(
            meta.get("clip.projector_type") or meta.get("clip.vision.projector_type") or "mlp"
        ),
        name=str(meta.get("general.name", "")),
        image_size=_int(meta.get("clip.vision.image_size")),
        patch_size=_int(meta.get("clip.vision.patch_size")),
        images="" if spec is None else str(spec),
        n_layer=_int(meta.get("clip.vision.block_count")),
        n_embd=_int(meta.get("clip.vision.embedding_length")),
        width=_token_width(header),
        n_params=n_params,
    )


def _token_width(header: GgufHeader) -> int:
    """Width of the image tokens.

    Old LLaVA files carry CLIP's own 768 in projection_dim, so the last matrix of a projector that
    is an MLP goes
    first: mm.N.weight, ne = [width in, width out].
    """
    for layer in (4, 3, 2, 1, 0):
        shape = header.shapes.get(f"mm.{layer}.weight", ())
        if len(shape) == 2:
            return shape[1]
    return _int(header.metadata.get("clip.vision.projection_dim"))


def _int(value: Value | None) -> int:
    return int(value) if isinstance(value, (int, float)) else 0


def _count(n: int) -> str:
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if n >= unit:
            return f"{n / unit:.2f} {letter}"
    return str(n)
