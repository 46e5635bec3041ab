"""Phase A: the eye alone, on dense labels of composed scenes.

First 168 x 168 windows (a quarter of the image tokens) at random places of the position table,
then whole 336 x 336 images, a third of them enlarged easy-VQA images.
    python train_eye.py --data DATA --out DIR --stage window --steps 6000
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common import Curve, Mean, launch, normalise, optimizers, save, schedule, set_rate
from easy_vqa_data import COLORS, SHAPES, EasyImage, enlarge, load, sources
from model import GRID, Config, Demo, Heads
from scenes import PATCH, Scene, Thing, compose, scene_rng


def labels(things: tuple[Thing, ...], owner: np.ndarray) -> np.ndarray:
    """Per patch: object, shape, color (-1 none), dx, dy to the centre in 5 patches, centre.

    Gives (side * side, 6) float32.
    """
    side = owner.shape[0]
    out = np.zeros((side, side, 6), np.float32)
    out[..., 1:3] = -1
    ys, xs = np.mgrid[0:side, 0:side]
    for index, thing in enumerate(things):
        on = owner == index
        cx, cy = thing.center[0] / PATCH, thing.center[1] / PATCH
        out[on, 0] = 1
        out[on, 1], out[on, 2] = SHAPES.index(thing.shape), COLORS.index(thing.color)
        out[on, 3], out[on, 4] = (cx - xs[on] - 0.5) / 5, (cy - ys[on] - 0.5) / 5
        out[min(int(cy), side - 1), min(int(cx), side - 1), 5] = 1
    return out.reshape(side * side, 6)


def easy_scene(image: EasyImage, rng: np.random.Generator | None) -> Scene:
    """An enlarged easy-VQA image in the form of a scene of one object."""
    pixels, mask = enlarge(image, rng)
    ys, xs = np.nonzero(mask)
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    owner = mask[PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].astype(np.int8) - 1
    return Scene(pixels, (Thing(image.shape, image.color, box),), owner)


class Stream:
    """Numbered training samples: pixels, labels and positions in the table."""

    def __init__(self, data: Path, split: str) -> None:
        self.easy = load(data, "test" if split == "eval" else "train")
        self.cutouts, self.split = sources(self.easy), split

    def sample(self, index: int, *, window: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = scene_rng(self.split, index)
        grid = np.arange(GRID * GRID).reshape(GRID, GRID)
        if window:
            side = int(rng.integers(1, 5))
            scene = compose(rng, self.cutouts, size=168, n_things=side)
            x, y = rng.integers(0, GRID // 2 + 1, 2)
            grid = grid[y : y + GRID // 2, x : x + GRID // 2]
        elif rng.random() < 0.33:
            image = self.easy[rng.integers(len(self.easy))]
            scene = easy_scene(image, None if self.split == "eval" else rng)
        else:
            scene = compose(rng, self.cutouts)
        return scene.pixels, labels(scene.things, scene.owner), grid.reshape(-1)

    def batch(self, indices: list[int], *, window: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels (B, H, W, 3) uint8, labels (B, n, 6), positions (B, n)."""
        parts = [self.sample(i, window=window) for i in indices]
        pixels, marks, where = (np.stack(p) for p in zip(*parts, strict=True))
        return torch.from_numpy(pixels), torch.from_numpy(marks), torch.from_numpy(where)


def losses(out: tuple[Tensor, ...], marks: Tensor) -> dict[str, Tensor]:
    """The parts of the dense loss, each a mean over the patches it speaks of."""
    thing, shape, color, offset, centre, place = out
    on = marks[..., 0] > 0
    parts = {
        "object": F.binary_cross_entropy_with_logits(thing[..., 0], marks[..., 0]),
        "shape": F.cross_entropy(shape[on], marks[on][:, 1].long()),
        "color": F.cross_entropy(color[on], marks[on][:, 2].long()),
        "offset": 2 * F.smooth_l1_loss(offset[on], marks[on][:, 3:5], beta=0.1),
        "centre": F.binary_cross_entropy_with_logits(
            centre[..., 0], marks[..., 5], pos_weight=torch.tensor(8.0)
        ),
    }
    if marks.shape[1] == GRID * GRID:  # whole images: where the object's centre is, in [-1, 1]
        index = torch.arange(GRID * GRID)
        own = torch.stack([index % GRID, index // GRID], dim=1) + 0.5
        truth = (own + 5 * marks[..., 3:5]) / (GRID / 2) - 1
        parts["place"] = 2 * F.smooth_l1_loss(place[on], truth[on], beta=0.1)
    return parts


@torch.no_grad()
def measure(demo: Demo, head: Heads, batches: list, *, window: bool) -> dict[str, float]:
    """Accuracies over held-out batches: object per patch, shape and color per object patch."""
    sums: dict[str, list[float]] = {}
    for pixels, marks, where in batches:
        with torch.autocast("cpu", torch.bfloat16):
            out = head(demo.eye(normalise(pixels), where if window else None))
        on = marks[..., 0] > 0
        hits = {
            "object": (out[0][..., 0] > 0) == on,
            "shape": out[1][on].argmax(-1) == marks[on][:, 1],
            "color": out[2][on].argmax(-1) == marks[on][:, 2],
            "centre": (out[4][..., 0] > 0)[marks[..., 5] > 0],
            "offset": (out[3][on] - marks[on][:, 3:5]).abs().mean() * 5,
        }
        for name, value in hits.items():
            sums.setdefault("eval_" + name, []).append(float(value.float().mean()))
    return {name: float(np.mean(v)) for name, v in sums.items()}


def load_head(head: Heads, state: dict[str, Tensor]) -> None:
    """The head's saved rows; a head that grew since keeps its start in the new ones."""
    for name, value in state.items():
        getattr(head.out, name.split(".")[1]).data[: value.shape[0]] = value


def worker(rank: int, world: int, a: argparse.Namespace) -> None:
    window = a.stage == "window"
    demo, head = Demo(Config()), Heads(Config())
    path, start = a.out / "eye.pt", 0
    if a.init and a.init.exists():
        content = torch.load(a.init, weights_only=True)
        demo.eye.load_state_dict(content["eye"])
        load_head(head, content["head"])
    opts = optimizers([(demo.eye, 1.0), (head, 1.0)])
    mean = Mean([*demo.eye.parameters(), *head.parameters()], world)
    train, held = Stream(a.data, "train"), Stream(a.data, "eval")
    batches = [held.batch(list(range(i, i + 32)), window=window) for i in range(0, a.held, 32)]
    curve = Curve(a.out / "curve.csv", f"eye-{a.stage}")
    running: dict[str, float] = {}
    began = time.time()
    for step in range(start, a.steps):
        rate = schedule(step, step / a.steps, warmup=100, peak=a.rate, cooldown=0.4)
        set_rate(opts, rate)
        first = a.first + (step * world + rank) * a.batch
        pixels, marks, where = train.batch(list(range(first, first + a.batch)), window=window)
        mean.zero()
        with torch.autocast("cpu", torch.bfloat16):
            out = head(demo.eye(normalise(pixels), where if window else None))
        parts = losses(out, marks)
        sum(parts.values()).backward()
        mean.reduce(1.0)
        for opt in opts:
            opt.step()
        for name, value in parts.items():
            now = float(value.detach())
            running[name] = 0.95 * running.get(name, now) + 0.05 * now
        if rank == 0 and (step % 100 == 99 or step + 1 == a.steps):
            values = {**running, **measure(demo, head, batches, window=window)}
            values["rate"] = (step + 1 - start) * a.batch * world / (time.time() - began)
            curve.add(step + 1, (step + 1) * a.batch * world, values)
            print(step + 1, {k: round(v, 3) for k, v in values.items()}, flush=True)
            save(path, eye=demo.eye.state_dict(), head=head.state_dict(), step=step + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", choices=("window", "whole"), default="window")
    parser.add_argument("--init", type=Path)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=16, help="images per worker and step")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--first", type=int, default=0, help="number of the first sample")
    parser.add_argument("--held", type=int, default=64)
    parser.add_argument("--world", type=int, default=2)
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    launch(worker, a.world, a)


if __name__ == "__main__":
    main()
