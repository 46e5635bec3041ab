"""A one-time help between two phases: a strong place signal in the projector's output.

    python open_place.py --data DATA --tokens tokenizer.model --init answers4.pt --out opened.pt
The eye's dense head reads an object's centre off the image tokens, but weakly enough that the
decoder kept to what rotary positions tell (the row, not the column). The projector's four least
used hidden units are set to plus and minus the head's x and y, and write them in two random
directions of the decoder's input; training goes on from there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from batches import Maker, Words
from common import normalise, save
from model import Config, Demo

SHARE = 0.25  # the signal's norm at the image's edge, in norms of an average image token


@torch.no_grad()
def open_place(demo: Demo, head: dict[str, torch.Tensor], features: torch.Tensor) -> None:
    """Changes demo.projector in place; features (rows, eye width) are typical image tokens."""
    one, two = demo.projector.linear1, demo.projector.linear2
    hidden = F.gelu(one(features), approximate="tanh")
    size = float(demo.projector(features).norm(dim=1).mean())
    units = (hidden.std(dim=0) * two.weight.norm(dim=0)).argsort()[:4].tolist()
    two.bias += two.weight[:, units] @ hidden[:, units].mean(dim=0)  # keep their mean
    weight, bias = head["out.weight"][-2:], head["out.bias"][-2:]
    for axis in range(2):
        way = torch.randn(two.weight.shape[0])
        way *= SHARE * size / 2 / way.norm()
        for unit, sign in zip(units[2 * axis : 2 * axis + 2], (1.0, -1.0), strict=True):
            one.weight[unit], one.bias[unit] = 2 * sign * weight[axis], 2 * sign * bias[axis]
            two.weight[:, unit] = sign * way


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "tokens", "init", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    a = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    content = torch.load(a.init, weights_only=True)
    demo = Demo(Config())
    demo.load_state_dict(content["demo"])
    maker = Maker(a.data, Words(a.tokens), "train", keep=576, text=96, easy=0.3)
    with torch.no_grad():
        features = demo.eye.float()(normalise(maker.batch(list(range(8))).pixels).float())
    open_place(demo, content["head"], features.flatten(0, 1))
    save(a.out, demo=demo.state_dict(), head=content["head"], step=0)


if __name__ == "__main__":
    main()
