"""The laws on one tiny model of any architecture, of which nothing is known before.

What is refused with its reason is asked first; what was promised must then hold. invariants.py has
the laws of models that are known, with more to each; these here go on after one that is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from atp_cpp import _core as core
from support.batch_laws import Course, batch_equals_alone
from support.invariants import nothing_leaks, uncut_plan
from support.rig import EXACT, Floats, Rig, dead_rows, live_rows, nmse, prompt, steps
from support.tolerance import bound

N_STEPS = 4
LEADING = [3, 4, 5, 6, 7, 8, 9]
SHAPES = [(4, (4, 5), 9), (2, (3, 3), 40), (5, (5, 4), 3)]  # the second takes several ubatches
SIZES: dict[str, Any] = {"n_ctx": 256, "n_ubatch": 32}


@dataclass(frozen=True)
class ArchRig(Rig):
    """A rig whose rows of the tolerance table are those of all architectures."""

    @property
    def precision(self) -> str:
        return super().precision + ", archs"


@dataclass
class Findings:
    """What was found of one model.

    Attributes:
        info: what the engine says of it.
        tried: cuts at which a law was tried; 0 stands for none.
        refused: what is refused before anything runs, with the reason.
        broken: laws that did not hold: where, and by how much.
        largest: the largest error of each law.
        say: told what is tried next.
    """

    info: dict[str, Any] = field(default_factory=dict)
    tried: dict[str, list[int]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    largest: dict[str, float] = field(default_factory=dict)
    say: Callable[[str], None] = print

    def measured(self, law: str, where: str, error: float, limit: float) -> None:
        """Note an error; above the limit, or no number, it is a broken law."""
        self.largest[law] = max(self.largest.get(law, 0.0), error)
        if not error <= limit:
            self.broken.append(f"{law}, {where}: NMSE {error:.1e}")

    def law(self, name: str, cuts: Sequence[int], run: Callable[[], None]) -> None:
        """Run a law; whatever it raises breaks it, as all refusals come before."""
        where = f"cuts {list(cuts)}" if len(cuts) != 1 else f"cut {cuts[0]}"
        self.say(f"{name}, {where}")
        self.tried.setdefault(name, []).extend(cuts if len(cuts) == 1 else [])
        try:
            run()
        except (AssertionError, core.AtpError) as error:
            said = str(error).strip().partition("\n")[0]
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__} "
            self.broken.append(f"{name}, {where}: {kind}{said or 'not equal'}")


def ask(found: Findings, rig: Rig) -> bool:
    """What the engine says of the model before anything runs; False: it takes it not at all."""
    try:
        engine = core.Engine(str(rig.path), n_threads=1, **rig.options)
    except core.AtpError as error:
        found.refused["model"] = str(error)
        return False
    info = engine.info
    found.info |= {
        "n_layer": info.n_layer,
        "legal_cuts": info.legal_cuts,
        "can_batch": info.can_batch,
    }
    if not info.can_prune:
        found.refused["cuts"] = info.why_not
    engine.close()
    return True


def layers_with_states(path: Path) -> set[int]:
    """The layers that carry on what they saw, in a recurrent state or in cells of several rows."""
    parts = ("ssm_", "shortconv", "time_mix", "conv1d", "compressor")
    names = [t.name for t in gguf.GGUFReader(path).tensors]
    return {
        int(name.split(".")[1])
        for name in names
        if name.startswith("blk.") and any(part in name for part in parts)
    }


@dataclass
class Bench:
    """Decoders of one model, used by all laws one after another: to load it is what takes time."""

    rig: Rig
    staged: core.Decoder
    plain: core.Reference
    watched: core.Reference

    @classmethod
    def of(cls, rig: Rig) -> Bench:
        return cls(rig, rig.staged(), rig.plain(), rig.plain())

    def run_both(
        self, plain: core.Reference, seq: core.Sequence
    ) -> tuple[dict[str, Any], list[Floats], list[Floats]]:
        """A prompt and some steps: what staged says, and the logits expected and got."""
        out = self.staged.prefill(seq, n_predict=N_STEPS, all_logits=True)
        expected, got = [plain.prefill(seq, all_logits=True)], [out["logits"]]
        for i, token in enumerate(steps(self.staged, N_STEPS)):
            expected.append(plain.decode(token, seq.n_pos + i))
            got.append(self.staged.decode([(0, token, seq.n_pos + i)]))
        self.staged.remove(0)
        return out, expected, got

    def softmax(self, layers: Sequence[int], seq: core.Sequence) -> dict[int, Floats]:
        """llama.cpp's own softmax of the last rows of a prompt, in those layers that have one."""
        self.watched.capture([f"kq_soft_max-{il}" for il in layers])
        self.watched.prefill(seq, all_logits=True)  # chameleon cannot compute rows without logits
        captured = {int(name.rpartition("-")[2]): a for name, a in self.watched.captured.items()}
        self.watched.capture([])
        return {il: parts[-1][0] for il, parts in captured.items()}


def staged_is_whole(
    found: Findings, bench: Bench, cuts: Sequence[int], prompts: Sequence[core.Sequence]
) -> None:
    """One decoder takes several prompts, one after another, and is llama_decode on each."""
    bench.staged.set_plan(uncut_plan(cuts))
    for k, seq in enumerate(prompts):
        _, expected, got = bench.run_both(bench.plain, seq)
        error = nmse(np.concatenate(expected), np.concatenate(got))
        where = f"{bench.rig.precision.partition(',')[0]}, cuts {list(cuts)}, prompt {k + 1}"
        found.measured("staged = whole", where, error, bound("cpu", "any", "staged = whole"))
        last = bench.staged.prefill(seq)["logits"]
        bench.staged.remove(0)
        limit = bound("cpu", bench.rig.precision, "last row = all rows")
        found.measured("last row = all rows", where, nmse(got[0][-1:], last), limit)


def half_is_whole(found: Findings, exact: Bench, half: Bench, seq: core.Sequence) -> None:
    """The model is no chaos: a cache rounded to halves changes little."""
    expected = exact.plain.prefill(seq, all_logits=True)
    error = nmse(expected, half.plain.prefill(seq, all_logits=True))
    found.measured("no chaos", "F16 cache", error, bound("cpu", half.rig.precision, "F16 = F32"))


def pruned_is_masked(found: Findings, bench: Bench, cut: core.Cut, seq: core.Sequence) -> None:
    """Dropping rows equals hiding them."""
    bench.staged.set_plan([cut])
    kept = bench.staged.prefill(seq)["kept"][-1]
    bench.staged.remove(0)
    dead = dead_rows(seq, kept)
    assert dead, "the policy drops rows"
    bench.watched.hide(cut.after, dead)
    _, expected, got = bench.run_both(bench.watched, seq)
    bench.watched.hide(cut.after, [])
    expected[0] = expected[0][live_rows(seq, kept)]
    error = nmse(np.concatenate(expected), np.concatenate(got))
    limit = bound("cpu", bench.rig.precision, "pruned = masked")
    found.measured("pruned = masked", f"cut {cut.after}", error, limit)


def score_is_softmax(
    found: Findings, bench: Bench, after: int, softmax: dict[int, Floats], seq: core.Sequence
) -> None:
    """The score is the softmax of the last row in a layer of llama.cpp's own graph, mean of heads.

    Which of the layers before the cut sees everything, only the engine knows; one must be equal.
    """
    scores = np.asarray(bench.staged.prefill(seq)["scores"][0])
    bench.staged.remove(0)
    errors = [
        nmse(p[:, -1, seq.image_rows].mean(axis=0), scores)
        for il, p in softmax.items()
        if il < after and p.shape[-1] >= seq.n_rows
    ]
    limit = bound("cpu", bench.rig.precision, "scores = softmax")
    found.measured("scores = softmax", f"cut {after}", min(errors), limit)


def at_each_cut(found: Findings, bench: Bench, prompts: list[core.Sequence]) -> None:
    """The laws of one cut, at every legal one."""
    n_layer, first = found.info["n_layer"], prompts[0]
    softmax = bench.softmax(range(n_layer), first)
    states = layers_with_states(bench.rig.path)
    for after in found.info["legal_cuts"]:
        cut = core.Cut(after, "random", 0.4, 7)
        if set(range(after, n_layer)) <= set(softmax) - states:
            run = partial(pruned_is_masked, found, bench, cut, first)
            found.law("pruned = masked", [after], run)
        try:
            bench.staged.set_plan([core.Cut(after, "fastv", 0.4)])
        except core.PlanError as error:
            found.refused[f"scores, cut {after}"] = str(error)
        else:
            run = partial(score_is_softmax, found, bench, after, softmax, first)
            found.law("scores = softmax", [after], run)
        run = partial(nothing_leaks, bench.rig, bench.staged, [cut], prompts[1], first)
        found.law("no leak", [after], run)
        bench.staged.remove(0)


def together_is_alone(rig: Rig, plan: list[core.Cut], prompts: list[core.Sequence]) -> None:
    """Captions under way together are each as alone, and share the text before their images."""
    batch_equals_alone(rig, plan, prompts, Course([5, 2, 4], 2, [0, 1, 2]))


def examine(path: Path, say: Callable[[str], None]) -> Findings:
    """All laws on the model in a file."""
    found = Findings(say=say)
    rig, half = ArchRig(path, "any", EXACT | SIZES), ArchRig(path, "any", SIZES)
    say("load")
    if not ask(found, rig):
        return found
    benches = [Bench.of(rig), Bench.of(half)]
    prompts = [
        prompt(rig, benches[0].staged, *shape, seed=k, leading=LEADING)
        for k, shape in enumerate(SHAPES)
    ]
    found.law("no chaos", [], partial(half_is_whole, found, *benches, prompts[1]))
    cuts: list[int] = found.info["legal_cuts"]
    for some in [[], *([cut] for cut in cuts), *([cuts] if len(cuts) > 1 else [])]:
        for bench in benches[: 1 if len(some) == 1 else 2]:  # all cuts at once for both caches
            run = partial(staged_is_whole, found, bench, some, prompts[:2])
            found.law("staged = whole", some, run)
    if cuts:
        found.law("every cut", cuts, partial(at_each_cut, found, benches[0], prompts))
    plans = [[], *([[core.Cut(cuts[len(cuts) // 2], "random", 0.4, 7)]] if cuts else [])]
    for plan in plans if found.info["can_batch"] else []:
        run = partial(together_is_alone, rig, plan, prompts)
        found.law("batch = alone", [cut.after for cut in plan], run)
    return found
