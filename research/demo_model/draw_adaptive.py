"""The picture of docs: what ATP keeps for several questions and images, one line each.

    python draw_adaptive.py --out docs/pictures/adaptive.png \
        --show scene.png "what color is the circle?" --show scene.png "where is the blue shape?" …
First the image with its question, then one panel per cut, as `atp-cpp explain` draws them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from atp_cpp.captioner import Captioner
from atp_cpp.images.load import Pixels, load_image
from atp_cpp.inspect.picture import dimmed, kept_mask, sheet, spatial_mask

SIDE = 240  # px of a panel


def panels(captioner: Captioner, path: str, question: str) -> list[tuple[Pixels, str]]:
    """One line: the image, then what each cut kept."""
    pixels = load_image(path)
    small = np.array(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    caption = captioner.caption(pixels, question, policy="atp")
    print(f"{path}: {question} {caption.text}; {caption.report.tokens_mean:.1f} tokens")
    out = [(small, question)]
    for k, cut in enumerate(captioner.info.atp_cuts):
        mask = kept_mask(caption.report, k)
        label = f"after layer {cut}: {int(mask.sum())} of {mask.size}"
        out.append((dimmed(small, mask, spatial_mask(caption.report, k)), label))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show", nargs=2, action="append", metavar=("IMAGE", "QUESTION"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("-m", "--model", help="default: the demo model")
    parser.add_argument("--mmproj")
    parser.add_argument("--atp")
    a = parser.parse_args()
    with Captioner(a.model, mmproj=a.mmproj, atp=a.atp) as captioner:
        if len(captioner.info.atp_cuts) != 3:
            raise SystemExit("the page has four panels a line: expected a sidecar with three cuts")
        lines = [panel for image, text in a.show for panel in panels(captioner, image, text)]
    sheet(lines).quantize(128, dither=Image.Dither.NONE).save(a.out, optimize=True)


if __name__ == "__main__":
    main()
