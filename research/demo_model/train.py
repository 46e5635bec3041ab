"""Phases B and C: the decoder and the projector on questions, then everything together.

python train.py --data DATA --out DIR --tokens tokenizer.model --eye eye.pt --keep 144
python train.py ... --init demo.pt --keep 576 --eye-scale 0.2
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from batches import NONE, Batch, Maker, Words, packed
from common import Curve, Mean, launch, normalise, optimizers, save, schedule, set_rate
from model import Config, Demo, Heads, Packed
from train_eye import load_head, losses


def rows_of(
    demo: Demo, batch: Batch, words: Words, features: Tensor
) -> tuple[Tensor, Tensor, Packed]:
    """The decoder's input rows (B, n, width), their positions (B, n), how they attend."""
    b, count = batch.keep.shape
    index = batch.keep[:, :, None].expand(-1, -1, features.shape[2])
    image = demo.projector(features.gather(1, index))
    opening = torch.tensor(words.opening).expand(b, -1)
    embed = demo.decoder.embed
    rows = torch.cat([embed(opening).to(image), image, embed(batch.tokens).to(image)], dim=1)
    start = torch.arange(len(words.opening)).expand(b, -1)
    pos = torch.cat([start, batch.keep + len(words.opening), batch.pos], dim=1)
    return rows, pos, packed(len(words.opening) + count, batch.segment, rows.dtype)


def answer_logits(demo: Demo, batch: Batch, words: Words, features: Tensor) -> Tensor:
    """Logits (answers' rows of the whole batch, vocab)."""
    rows, pos, how = rows_of(demo, batch, words, features)
    hidden = demo.decoder(rows, pos, how)[:, -batch.tokens.shape[1] :]
    return demo.decoder.out(hidden[batch.target != NONE]).float()


@torch.no_grad()
def exact(
    demo: Demo, batch: Batch, words: Words, *, half: bool = True
) -> list[tuple[str, int, bool]]:
    """(kind, image, right) of every question: right if each answer token is the most likely.

    That is what greedy decoding gives, since a right prefix is its own input.
    """
    pixels = normalise(batch.pixels, torch.bfloat16 if half else torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        features = demo.eye(pixels)
        logits = answer_logits(demo, batch, words, features)
    spots = batch.target != NONE
    hit = torch.ones_like(batch.target, dtype=torch.bool)
    hit[spots] = logits.argmax(-1) == batch.target[spots]
    out = []
    for i, asked in enumerate(batch.asked):
        for number, item in enumerate(asked):
            right = bool(hit[i][batch.segment[i] == number].all())
            out.append((item.kind, i, right))
    return out


def watch(demo: Demo, words: Words, scenes: list[Batch], easy: list[Batch]) -> dict[str, float]:
    """Held-out accuracies: easy-VQA as a whole, scenes as a whole and by kind."""
    demo.eval()
    tally: dict[str, list[bool]] = {}
    for name, batches in (("scene", scenes), ("easy", easy)):
        for batch in batches:
            for kind, _, right in exact(demo, batch, words):
                tally.setdefault(f"eval_{name}", []).append(right)
                if name == "scene":
                    tally.setdefault(f"eval_scene_{kind}", []).append(right)
    demo.train()
    return {name: sum(v) / len(v) for name, v in tally.items()}


def step_loss(
    demo: Demo, head: Heads, batch: Batch, words: Words, *, frozen: bool, aux: float
) -> dict[str, Tensor]:
    """The answers' loss and, where the eye learns too, its dense loss."""
    with torch.autocast("cpu", torch.bfloat16):
        with torch.set_grad_enabled(not frozen):
            features = demo.eye(normalise(batch.pixels))
        logits = answer_logits(demo, batch, words, features)
        dense = None if frozen else head(features)
    spots = batch.target != NONE
    each = F.cross_entropy(logits, batch.target[spots], reduction="none")
    weight = batch.weight[spots]
    out = {"answer": (each * weight).sum() / weight.sum()}
    if dense is not None:
        parts = losses(dense, batch.marks)
        out |= {name: aux * value for name, value in parts.items()}
    return out


def worker(rank: int, world: int, a: argparse.Namespace) -> None:
    demo, head = Demo(Config()), Heads(Config())
    if a.eye:
        content = torch.load(a.eye, weights_only=True)
        demo.eye.load_state_dict(content["eye"])
        load_head(head, content["head"])
    if a.init and a.init.exists():
        content = torch.load(a.init, weights_only=True)
        demo.load_state_dict(content["demo"])
        load_head(head, content["head"])
    frozen = a.eye_scale == 0
    groups = [(demo.projector, 1.0), (demo.decoder, 1.0)]
    if frozen:
        demo.eye.requires_grad_(False)
    else:
        groups += [(demo.eye, a.eye_scale), (head, a.eye_scale)]
    opts = optimizers(groups)
    mean = Mean([p for module, _ in groups for p in module.parameters()], world)
    words = Words(a.tokens)
    train = Maker(a.data, words, "train", keep=a.keep[0], text=a.text, easy=a.easy)
    held = [Maker(a.data, words, "eval", keep=576, text=480, easy=e) for e in (0.0, 1.0)]
    scenes, easy = ([m.batch(list(range(i, i + 8))) for i in range(0, a.held, 8)] for m in held)
    curve, began = Curve(a.out / "curve.csv", a.name), time.time()
    running: dict[str, float] = {}
    for step in range(a.steps):
        rate = schedule(step, mean.progress, warmup=a.warmup, peak=a.rate, cooldown=a.cooldown)
        set_rate(opts, rate)
        first = a.first + (step * world + rank) * a.batch
        train.keep = a.keep[step % len(a.keep)]
        batch = train.batch(list(range(first, first + a.batch)))
        mean.zero()
        parts = step_loss(demo, head, batch, words, frozen=frozen, aux=a.aux)
        sum(parts.values()).backward()
        progress = max((step + 1) / a.steps, (time.time() - began) / (60 * a.minutes))
        running["norm"] = mean.reduce(1.0, world * progress if rank == 0 else 0.0)
        last = mean.progress >= 1
        for opt in opts:
            opt.step()
        for name, value in parts.items():
            now = float(value.detach())
            running[name] = 0.95 * running.get(name, now) + 0.05 * now
        if rank == 0 and (step % a.every == a.every - 1 or last):
            values = {**running, **watch(demo, words, scenes, easy)}
            values["rate"] = (step + 1) * a.batch * world / (time.time() - began)
            curve.add(step + 1, (step + 1) * a.batch * world, values)
            print(step + 1, {k: round(v, 3) for k, v in values.items()}, flush=True)
            save(a.out / f"{a.name}.pt", demo=demo.state_dict(), head=head.state_dict(), step=step)
        if last:
            break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--name", default="answers")
    parser.add_argument("--eye", type=Path)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=1e9, help="ends the phase, if sooner")
    parser.add_argument("--batch", type=int, default=8, help="images per worker and step")
    parser.add_argument(
        "--keep", type=int, nargs="+", default=[144], help="image tokens the decoder sees, in turn"
    )
    parser.add_argument("--text", type=int, default=288, help="text rows per image, times 96")
    parser.add_argument("--easy", type=float, default=0.35, help="share of easy-VQA images")
    parser.add_argument("--eye-scale", type=float, default=0.0, help="the eye's share of the rate")
    parser.add_argument("--aux", type=float, default=0.1, help="weight of the eye's dense loss")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--cooldown", type=float, default=0.4)
    parser.add_argument("--first", type=int, default=1_000_000, help="number of the first sample")
    parser.add_argument("--held", type=int, default=32)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--world", type=int, default=2)
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    launch(worker, a.world, a)


if __name__ == "__main__":
    main()
