#!/usr/bin/env python3
"""Write random models with the shapes of real ones, for timing only.

    python benchmarks/make_shape_models.py 1.1b --out-dir models

| shape | decoder                                              | vision tower with projector       |
|-------|------------------------------------------------------|-----------------------------------|
| 1.1b  | TinyLlama: 22 layers, 2048 wide, 32/4 heads, Q8_0    | ViT-L/14-336, F16, 576 tokens     |
| 7b    | LLaVA-1.5-7B: 32 layers, 4096 wide, 32/32 heads, Q4_0 | the same                         |

Speed and memory depend on shapes and types, not on what the weights say; the text is noise. The
scales are those of the tiny test models, so activations stay finite and attention is not uniform.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from tiny_models import (
    DecoderShape,
    VisionShape,
    decoder_metadata,
    decoder_tensors,
    vision_metadata,
    vision_tensors,
    write_gguf,
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A decoder, the type it is stored in, and the names of the two files."""

    decoder: DecoderShape
    weight_type: str
    decoder_file: str
    mmproj_file: str


def presets() -> dict[str, Preset]:
    """What can be written, by the name used on the command line."""
    tinyllama = DecoderShape(
        arch="llama",
        n_layer=22,
        n_embd=2048,
        head_dim=64,
        n_head_kv=4,
        n_ff=5632,
        n_vocab=32000,
        name="random 1.1B shape (TinyLlama)",
        bias_channel=False,
    )
    llava = DecoderShape(
        arch="llama",
        n_layer=32,
        n_embd=4096,
        head_dim=128,
        n_head_kv=32,
        n_ff=11008,
        n_vocab=32000,
        name="random 7B shape (LLaVA-1.5)",
        bias_channel=False,
    )
    return {
        "1.1b": Preset(
            decoder=tinyllama,
            weight_type="q8_0",
            decoder_file="tinyllama-1.1b-shape-q8_0.gguf",
            mmproj_file="mmproj-vit-l-336-f16.gguf",
        ),
        "7b": Preset(
            decoder=llava,
            weight_type="q4_0",
            decoder_file="llava-7b-shape-q4_0.gguf",
            mmproj_file="mmproj-vit-l-336-7b-f16.gguf",
        ),
    }


def vit_l_336(n_embd_text: int, *, class_token: bool) -> VisionShape:
    """CLIP ViT-L/14 at 336 pixels: 24 x 24 = 576 image tokens of width `n_embd_text`."""
    return VisionShape(
        layout="mlp-cls" if class_token else "mlp",
        n_embd_text=n_embd_text,
        image_size=336,
        patch_size=14,
        n_layer=24,
        n_embd=1024,
        n_head=16,
        n_ff=4096,
        name="random ViT-L/14-336 shape",
    )


def write_pair(preset: Preset, out_dir: Path, *, seed: int, class_token: bool) -> tuple[Path, Path]:
    """Write decoder and mmproj; returns their paths.

    Raises:
        OSError: a file cannot be written.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    decoder, mmproj = out_dir / preset.decoder_file, out_dir / preset.mmproj_file
    write_gguf(
        decoder,
        arch=preset.decoder.arch,
        metadata=decoder_metadata(preset.decoder),
        tensors=decoder_tensors(preset.decoder),
        weight_type=preset.weight_type,
        seed=seed,
        fast_blocks=True,
    )
    tower = vit_l_336(preset.decoder.n_embd, class_token=class_token)
    write_gguf(
        mmproj,
        arch="clip",
        metadata=vision_metadata(tower),
        tensors=vision_tensors(tower),
        weight_type="f16",
        seed=seed,
    )
    return decoder, mmproj


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shape", choices=list(presets()))
    parser.add_argument("--out-dir", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--no-class-token", action="store_true", help="tower without a class token (SigLIP-like)"
    )
    args = parser.parse_args(argv)
    start = time.monotonic()
    for path in write_pair(
        presets()[args.shape],
        args.out_dir,
        seed=args.seed,
        class_token=not args.no_class_token,
    ):
        print(f"{path}  {path.stat().st_size / 1e6:.0f} MB", file=sys.stderr)
    print(f"written in {time.monotonic() - start:.1f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
