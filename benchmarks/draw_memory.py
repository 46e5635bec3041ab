"""docs/pictures/batch_memory.png from the JSON that memory_batch.py wrote.

    pip install matplotlib==3.11.2
    python benchmarks/draw_memory.py benchmarks/results/memory-batch-demo.json batch_memory.png
Resident memory against rows written, one curve a way, and the line fitted after the warm-up.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
from memory_batch import LAST
from PIL import Image

mpl.use("Agg")
from matplotlib import pyplot as plt

INK, PALE = "#202020", "#8a8a8a"
WAYS = {
    "caption_many": ("Captioner.caption_many", "#0072b2"),
    "command": ("atp-cpp caption DIR --out", "#d55e00"),
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    content = json.loads(args.json.read_text(encoding="utf-8"))
    figure, axes = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
    for name, way in content["ways"].items():
        label, color = WAYS[name]
        samples = np.array(way["samples"], dtype=float)
        rate, error = way["slope"]["bytes_per_image"], way["slope"]["standard_error"]
        counted = (samples[:, 0] >= content["warm_up"]) & (
            samples[:, 0] <= content["images"] - LAST
        )
        after = samples[counted]
        x = after[[0, -1], 0]
        fitted = after[:, 1].mean() + rate * (x - after[:, 0].mean())
        text = f"{label}: {rate:+.0f} ± {error:.0f} bytes an image"
        axes.plot(samples[:, 0], samples[:, 1] / 1e6, color=color, lw=1.2, label=text)
        axes.plot(x, fitted / 1e6, color=INK, lw=0.8, ls="--")
    axes.axvline(content["warm_up"], color=PALE, lw=0.8, ls=":")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, content["images"])
    axes.set_xlabel("rows written", color=INK, fontsize=9)
    axes.set_ylabel("resident memory, MB", color=INK, fontsize=9)
    axes.grid(color="#e4e4e4", lw=0.6)
    axes.tick_params(colors=INK, labelsize=8)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=150, facecolor="white", format="png")
    picture = Image.open(stream).convert("RGB")
    picture.quantize(64, dither=Image.Dither.NONE).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
