#!/usr/bin/env python3
"""Write a tiny random model for tests: a text decoder, or a vision tower with its projector.

    python tools/make_tiny_model.py llama --out llama.gguf --seed 1
    python tools/make_tiny_model.py mmproj-mlp --out mmproj.gguf --image-size 56

The same arguments give a byte-identical file. The text is noise, the behaviour is not: attention
is peaked, logits vary and every image token matters, so a wrong row or position shows.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_models import (
    DECODER_ARCHS,
    ODD_ARCHS,
    VISION_LAYOUTS,
    WEIGHT_TYPES,
    DecoderShape,
    VisionShape,
    decoder_metadata,
    decoder_tensors,
    vision_metadata,
    vision_tensors,
    write_gguf,
)
from tiny_models.gguf_file import Floats, TensorSpec, draw


def write_decoder(
    path: Path, arch: str, *, seed: int = 1, weight_type: str = "f32", **sizes: Any
) -> None:
    """Write a text decoder.

    Args:
        path: the GGUF file to write.
        arch: one of `DECODER_ARCHS` or `ODD_ARCHS`.
        seed: of all weights.
        weight_type: f32, f16, q8_0 or q4_0.
        sizes: fields of `DecoderShape`.

    Raises:
        ValueError: sizes or types that make no model.
    """
    shape = DecoderShape(arch=arch, **sizes)
    write_gguf(
        path,
        arch=arch,
        metadata=decoder_metadata(shape),
        tensors=decoder_tensors(shape),
        weight_type=weight_type,
        seed=seed,
    )


def write_tail(path: Path, arch: str, *, after: int, seed: int = 1, **sizes: Any) -> None:
    """Write the last layers of what `write_decoder` writes, in F32, as a model of its own.

    Its layer 0 is the whole model's layer `after`; embeddings and head are the same.

    Args:
        path: the GGUF file to write.
        arch: an architecture whose layers are of the same kinds from `after` on.
        after: layers left out.
        seed: of all weights.
        sizes: fields of `DecoderShape`, of the whole model.

    Raises:
        ValueError: sizes that make no model.
    """
    whole = DecoderShape(arch=arch, **sizes)
    tail = DecoderShape(arch=arch, **{**sizes, "n_layer": whole.n_layer - after})
    values = {spec.name: draw(spec, seed) for spec in decoder_tensors(whole)}

    def original(name: str) -> str:
        parts = name.split(".")
        return (
            ".".join(["blk", str(int(parts[1]) + after), *parts[2:]]) if parts[0] == "blk" else name
        )

    def copy_of(spec: TensorSpec) -> TensorSpec:
        def fill(array: Floats) -> None:
            array[:] = values[original(spec.name)]

        return replace(spec, edit=fill)

    write_gguf(
        path,
        arch=arch,
        metadata=decoder_metadata(tail),
        tensors=[copy_of(spec) for spec in decoder_tensors(tail)],
        weight_type="f32",
        seed=seed,
    )


def write_mmproj(
    path: Path, layout: str, *, seed: int = 1, weight_type: str = "f32", **sizes: Any
) -> None:
    """Write a vision tower with its projector.

    Args:
        path: the GGUF file to write.
        layout: one of `VISION_LAYOUTS`.
        seed: of all weights.
        weight_type: f32, f16, q8_0 or q4_0.
        sizes: fields of `VisionShape`.

    Raises:
        ValueError: sizes or types that make no model.
    """
    shape = VisionShape(layout=layout, **sizes)
    write_gguf(
        path,
        arch="clip",
        metadata=vision_metadata(shape),
        tensors=vision_tensors(shape),
        weight_type=weight_type,
        seed=seed,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    kinds = [*DECODER_ARCHS, *ODD_ARCHS, *(f"mmproj-{layout}" for layout in VISION_LAYOUTS)]
    parser.add_argument("kind", choices=kinds, help="what to write")
    parser.add_argument("--out", type=Path, required=True, help="the GGUF file to write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--type", choices=list(WEIGHT_TYPES), default="f32", dest="weight_type")
    parser.add_argument("--layers", type=int, dest="n_layer")
    parser.add_argument("--width", type=int, dest="n_embd", help="of the residual stream")
    parser.add_argument("--ff", type=int, dest="n_ff", help="width of the feed-forward layer")
    parser.add_argument("--deepstack", type=int, dest="n_deepstack", help="qwen3vl: features sent")
    text = parser.add_argument_group("decoders")
    text.add_argument("--head-dim", type=int)
    text.add_argument("--kv-heads", type=int, dest="n_head_kv")
    text.add_argument("--vocab", type=int, dest="n_vocab", help="tokens, at least 360")
    text.add_argument("--window", type=int, help="gemma3: sliding window in tokens")
    image = parser.add_argument_group("vision towers")
    image.add_argument("--text-width", type=int, dest="n_embd_text", help="of the text model")
    image.add_argument("--image-size", type=int, help="side in pixels")
    image.add_argument("--patch-size", type=int, help="side in pixels")
    image.add_argument("--heads", type=int, dest="n_head")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    parser = _parser()
    args = {key: value for key, value in vars(parser.parse_args(argv)).items() if value is not None}
    kind, out = args.pop("kind"), args.pop("out")
    try:
        if kind.startswith("mmproj-"):
            write_mmproj(out, kind.removeprefix("mmproj-"), **args)
        else:
            write_decoder(out, kind, **args)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
