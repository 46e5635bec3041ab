"""The content of a GGUF file, and whether it can run: the facts that ``atp-cpp inspect`` prints."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from atp_cpp._core import Engine
from atp_cpp.errors import ModelError
from atp_cpp.inspect.sidecar import SidecarFacts, inspect_sidecar
from atp_cpp.models.files import image_spec_of
from atp_cpp.models.gguf_header import GgufHeader, Value, read_header
from atp_cpp.models.pairing import describe, projector_kind, why_no_pair
from atp_cpp.options.plan import format_cuts

_INSPECT_CTX = 512  # positions; only short prompts are run


@dataclass(frozen=True, slots=True)
class TextModelFacts:
    """A text model.

    Attributes:
        file: its path.
        kind: "text model".
        arch: general.architecture.
        name: general.name.
        about: the name, and the models that the file says it was made from.
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
    about: str
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
            f"{self.file}: text model" + (f" ({self.about})" if self.about else ""),
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
        about: the name, and the models that the file says it was made from.
        image_size: px, side of the picture the encoder takes (the largest, if it varies); 0 if not
            said.
        patch_size: px; 0 if not said.
        images: how they are prepared; "" where the file leaves that to llama.cpp.
        n_layer: blocks of the encoder.
        n_embd: width of the encoder.
        width: width of the image tokens it makes: must be the text model's. 0 if the file does not
            say.
        n_params: parameters.
        model: the text model it was compared with; "" if none.
        model_about: what that file says of itself, as in `about`.
        fits: whether the two seem to belong together; None if there was none.
        why_not: the reason if they do not.
    """

    file: str
    kind: str
    projector: str
    name: str
    about: str
    image_size: int
    patch_size: int
    images: str
    n_layer: int
    n_embd: int
    width: int
    n_params: int
    model: str
    model_about: str
    fits: bool | None
    why_not: str

    def lines(self) -> list[str]:
        """For a reader."""
        end = ["  give it with --mmproj, beside its text model in -m"]
        if self.fits is not None:
            answer = "yes" if self.fits else f"no: {self.why_not}"
            about = f" ({self.model_about})" if self.model_about else ""
            end = [f"  text model     {self.model}{about}", f"  fits           {answer}"]
        return [
            f"{self.file}: vision projector (mmproj)" + (f" ({self.about})" if self.about else ""),
            f"  projector      {self.projector}",
            f"  width          {self.width or 'not said'}: fits text models of this width",
            f"  encoder        {self.n_layer} blocks of width {self.n_embd}",
            f"  image, patch   {self.image_size} px, {self.patch_size} px",
            f"  images         {self.images or 'prepared as llama.cpp does'}",
            f"  parameters     {_count(self.n_params)}",
            *end,
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
        model: text model that a projector or a sidecar is compared with.
        n_gpu_layers: for the self-test.
        n_threads: for the self-test; 0 lets the engine choose.

    Raises:
        ModelError: not a GGUF, cut short, nothing llama.cpp can run, or a model to compare with
            another text model.
    """
    header = read_header(path)
    if header.metadata.get("general.type") == "adapter":
        return inspect_sidecar(path, model=model, n_gpu_layers=n_gpu_layers, n_threads=n_threads)
    if header.arch == "clip":
        return _projector_facts(path, header, model)
    if model is not None:
        raise ModelError(
            f"{Path(path)} is a text model; -m is for comparing a projector or a sidecar with one"
        )
    return _text_model_facts(path, header, n_gpu_layers, n_threads)


def _text_model_facts(
    path: str | os.PathLike[str], header: GgufHeader, n_gpu_layers: int, n_threads: int
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
            about=describe(header.metadata),
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
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{Path(path)}: a text in it is no UTF-8: {error}; convert the model again"
        ) from None
    finally:
        engine.close()


def _projector_facts(
    path: str | os.PathLike[str], header: GgufHeader, model: str | os.PathLike[str] | None
) -> ProjectorFacts:
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
    width = _token_width(header)
    text = None if model is None else read_header(model)
    why_not = "" if text is None or model is None else _why_no_pair(path, width, model, text)
    return ProjectorFacts(
        file=os.fspath(path),
        kind="vision projector",
        projector=projector_kind(meta),
        name=str(meta.get("general.name", "")),
        about=describe(meta),
        image_size=_int(meta.get("clip.vision.image_size")),
        patch_size=_int(meta.get("clip.vision.patch_size")),
        images="" if spec is None else str(spec),
        n_layer=_int(meta.get("clip.vision.block_count")),
        n_embd=_int(meta.get("clip.vision.embedding_length")),
        width=width,
        n_params=n_params,
        model="" if model is None else os.fspath(model),
        model_about="" if text is None else describe(text.metadata),
        fits=None if model is None else not why_not,
        why_not=why_not,
    )


def _why_no_pair(
    path: str | os.PathLike[str],
    width: int,
    model: str | os.PathLike[str],
    text: GgufHeader,
) -> str:
    """Why a projector is not the text model's: their widths first."""
    if text.arch == "clip" or text.metadata.get("general.type") == "adapter":
        raise ModelError(f"{Path(model)} is no text model; -m takes one")
    theirs = _int(text.metadata.get(f"{text.arch}.embedding_length"))
    if width and theirs and width != theirs:
        return f"its image tokens are {width} wide, the text model is {theirs}"
    return why_no_pair(model, path)


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
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0


def _count(n: int) -> str:
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if n >= unit:
            return f"{n / unit:.2f} {letter}"
    return str(n)
