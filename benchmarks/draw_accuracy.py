"""docs/pictures/accuracy_tokens.png from the JSON that eval_atp.py wrote.

    pip install matplotlib==3.11.2
    python benchmarks/draw_accuracy.py benchmarks/results/atp-demo.json accuracy_tokens.png
Accuracy against the layer mean of image tokens, one panel a source of questions. Bars are
95 % intervals of the difference to the whole image, question by question. The paper is white on
purpose: the picture stands alike on light and dark pages.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from PIL import Image

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from atp_cpp.evaluation.intervals import Z_95

INK, PALE = "#202020", "#8a8a8a"
# label of a curve -> (beginning of a line's label, colour, marker, line style)
CURVES = {
    "ATP with a budget": ("ATP, budget", "#0072b2", "o", "-"),
    "ATP, own thresholds": ("ATP, its own", "#0072b2", "*", ""),
    "fastv, same three cuts": ("fastv", "#d55e00", "s", "-"),
    "fastv, one cut": ("fastv, one", "#d55e00", "s", ":"),
    "grid, same three cuts": ("grid", "#009e73", "^", "-"),
    "before tuning: all, fastv one cut": ("before tuning,", "#202020", "x", ""),
    "random, same three cuts": ("random", "#8a8a8a", "v", "-"),
}


def belongs(label: str, start: str) -> bool:
    """Whether a line of the JSON is of a curve; "fastv" alone must not take "fastv, one cut"."""
    return label == start or (label.startswith(start) and "," in start)


def curves(axes: Axes, lines: list[dict[str, Any]], source: str) -> None:
    """All curves of one panel, each from the whole image on, and the whole image as a line."""
    whole = lines[0][source]
    axes.axhline(100 * whole["accuracy"], color=PALE, lw=0.8, ls="--", zorder=0)
    for name, (start, color, marker, style) in CURVES.items():
        mine = [line[source] for line in lines if source in line and belongs(line["label"], start)]
        if not mine:
            continue
        x = [one["tokens_mean"] for one in mine]
        y = [100 * one["accuracy"] for one in mine]
        error = [Z_95 * one["points_error"] for one in mine]
        bold = start.startswith("ATP")
        axes.errorbar(
            x, y, error, label=name, color=color, marker=marker, ls=style,
            lw=2.0 if bold else 1.3, ms=(11 if marker == "*" else 6) if bold else 4.5,
            capsize=2, elinewidth=0.8, zorder=3 if bold else 2,
        )  # fmt: skip
    axes.plot(
        [whole["tokens_mean"]], [100 * whole["accuracy"]], "D", color=INK, ms=5, label="all tokens"
    )
    axes.set_title(source, color=INK, fontsize=10)
    axes.set_xlabel("image tokens, mean over layers", color=INK, fontsize=9)
    axes.set_xlim(0, 1.05 * whole["tokens_mean"])
    axes.set_ylim(bottom=min(90.0, axes.get_ylim()[0]), top=100.8)
    axes.grid(color="#e4e4e4", lw=0.6)
    axes.tick_params(colors=INK, labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path)
    parser.add_argument("out", type=Path)
    a = parser.parse_args()
    content = json.loads(a.json.read_text(encoding="utf-8"))
    sources = content["sources"]
    figure, panels = plt.subplots(
        1, len(sources), figsize=(4.6 * len(sources), 3.4), squeeze=False, layout="constrained"
    )
    for axes, source in zip(panels[0], sources, strict=True):
        curves(axes, content["lines"], source)
    panels[0][0].set_ylabel("right answers, %", color=INK, fontsize=9)
    panels[0][0].legend(fontsize=8, frameon=False, loc="lower right")
    stream = io.BytesIO()
    figure.savefig(stream, dpi=150, facecolor="white", format="png")
    picture = Image.open(stream).convert("RGB")
    picture.quantize(64, dither=Image.Dither.NONE).save(a.out, optimize=True)


if __name__ == "__main__":
    main()
