"""Attention that image tokens receive, in NumPy: from plain llama_decode's q and k, or its softmax.

A prompt is described as in `rig.prompt`: an int is a run of text, a pair an image of that grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atp_cpp import _core as core
from support.invariants import score_layer
from support.rig import Rig, dead_rows, live_rows, nmse, prompt
from support.tolerance import check

Parts = Sequence[int | tuple[int, int]]
Doubles = NDArray[np.float64]


def image_of_rows(parts: Parts) -> NDArray[np.int64]:
    """[n_rows]: which image a row is of, -1 for text."""
    runs: list[NDArray[np.int64]] = []
    n_images = 0
    for part in parts:
        if isinstance(part, int):
            runs.append(np.full(part, -1))
        else:
            runs.append(np.full(part[0] * part[1], n_images))
            n_images += 1
    return np.concatenate(runs)


def may_see(rig: Rig, parts: Parts, visible: Sequence[int]) -> NDArray[np.bool_]:
    """[n_rows, n_rows]: row j may see row i: none ahead, but for gemma3 inside one image."""
    image = image_of_rows(parts)
    n = len(image)
    sees = np.tri(n, dtype=np.bool_)
    if rig.arch == "gemma3":
        sees |= (image[:, None] == image[None, :]) & (image >= 0)
    alive = np.zeros(n, dtype=np.bool_)
    alive[list(visible)] = True
    return sees & alive


def map_of_q_and_k(
    rig: Rig, plain: core.Reference, seq: core.Sequence, il: int, sees: NDArray[np.bool_], n: int
) -> Doubles:
    """softmax(q k^T / sqrt(d)) of layer il, mean over heads, [n_rows, n_rows]; n runs of rows.

    q and k are those after RoPE: the last of several tensors of one name.
    """
    plain.capture([f"Qcur-{il}", f"Kcur-{il}"])
    plain.prefill(seq, all_logits=True)

    def rotated(name: str) -> Doubles:
        parts = plain.captured[f"{name}-{il}"]
        per_run = len(parts) // n
        rows = np.concatenate([a[0] for a in parts[per_run - 1 :: per_run]])
        assert len(rows) == seq.n_rows
        return rows.astype(np.float64)

    q, k = rotated("Qcur"), rotated("Kcur")
    n_head, head_dim = q.shape[1:]
    scale = 1.0 if rig.arch == "phi3" else 1.0 / np.sqrt(head_dim)  # phi3 scales q itself
    total = np.zeros(sees.shape)
    for head in range(n_head):
        logits = scale * q[:, head] @ k[:, head * k.shape[1] // n_head].T
        logits[~sees] = -np.inf
        top = np.maximum(logits.max(axis=1, keepdims=True), -1e30)  # a dropped first row sees none
        p = np.exp(logits - top)
        total += p / np.maximum(p.sum(axis=1, keepdims=True), 1e-300)
    return total / n_head


def map_of_softmax(plain: core.Reference, seq: core.Sequence, il: int) -> Doubles:
    """The same from llama.cpp's own softmax (flash attention off)."""
    plain.capture([f"kq_soft_max-{il}"])
    plain.prefill(seq, all_logits=True)
    rows = [
        np.pad(a[0].mean(axis=0)[:, : seq.n_rows], ((0, 0), (0, max(0, seq.n_rows - a.shape[-1]))))
        for a in plain.captured[f"kq_soft_max-{il}"]  # [1, n_head, n_rows of the run, n_kv]
    ]
    return np.concatenate(rows).astype(np.float64)


def received(attention: Doubles, parts: Parts, visible: Sequence[int]) -> tuple[Doubles, Doubles]:
    """What each visible image row gets: the sum over image rows, the mean over question rows.

    ATP-LLaVA (arXiv 2412.00447) sums over visual and over text tokens; that the text is the rows
    behind the last image is our reading.
    """
    image = image_of_rows(parts)
    seen = np.zeros(len(image), dtype=np.bool_)
    seen[list(visible)] = True
    givers = np.flatnonzero(seen & (image >= 0))
    question = np.arange(givers.max() + 1 if len(givers) else 0, len(image))
    question = question[question > np.flatnonzero(image >= 0).max()]
    return attention[np.ix_(givers, givers)].sum(axis=0), attention[np.ix_(question, givers)].mean(
        axis=0
    )


@dataclass(frozen=True)
class Chooser:
    """A policy that keeps a random share of the live tokens, at least one an image."""

    keep: float
    seed: int = 0

    def __call__(self, tokens: dict[str, NDArray[np.int32]]) -> list[int]:
        index, image = tokens["index"], tokens["image"]
        chosen = np.random.default_rng([self.seed, len(index)]).random(len(index)) < self.keep
        for i in np.unique(image):
            mine = np.flatnonzero(image == i)
            chosen[mine[0]] |= not chosen[mine].any()
        return [int(i) for i in index[chosen]]


def atp_plan(rig: Rig, keeps: Sequence[tuple[int, float]] | None = None) -> list[core.Cut]:
    """Cuts behind a full-attention layer each, that ask for ATP's scores and keep at random."""
    if keeps is None:
        keeps = [(4, 0.4)] if rig.arch == "gemma3" else [(1, 0.8), (3, 0.5), (7, 0.1)]
    return [core.Cut(after, Chooser(keep, after), needs="atp") for after, keep in keeps]


def atp_scores_equal_numpy(
    rig: Rig,
    staged: core.Decoder,
    parts: Parts,
    plan: Sequence[core.Cut] | None = None,
    n_ubatch: int = 512,
    seq: core.Sequence | None = None,
) -> dict[str, list[Doubles]]:
    """self_sum and cross of every live image token are what NumPy says, at every cut.

    Earlier cuts hide rows. `n_ubatch`: of the reference, which takes a run of rows at once.
    `seq`: a prompt of these parts, if not the random one. Returns what prefill returned.
    """
    plan = plan or atp_plan(rig)
    seq = seq or prompt(rig, staged, *parts)
    staged.remove(0)
    staged.set_plan(plan)
    out = staged.prefill(seq)
    alive = list(range(seq.n_image_tokens))
    plain = rig.plain(n_ubatch=n_ubatch)
    for k, cut in enumerate(plan):
        il = score_layer(rig, cut.after)
        visible = live_rows(seq, alive)
        sees = may_see(rig, parts, visible)
        maps = {"sums = NumPy": map_of_q_and_k(rig, plain, seq, il, sees, len(parts))}
        if rig.options.get("flash_attn") == "off":
            maps["sums = softmax"] = map_of_softmax(plain, seq, il)
        for what, attention in maps.items():
            self_sum, cross = received(attention, parts, visible)
            check(nmse(self_sum, out["self_sum"][k]), rig.backend, rig.precision, what)
            check(nmse(cross, out["cross"][k]), rig.backend, rig.precision, what)
        assert min(out["self_sum"][k]) > 0.0, "a row sees itself"
        assert out["cross"][k].sum() < 1.0, "the text takes its share of the attention"
        plain.hide(cut.after, dead_rows(seq, out["kept"][k]))
        alive = out["kept"][k]
    return out
