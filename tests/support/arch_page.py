"""docs/results/architectures.md, from the table of arch_sweep.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

HEAD = """# Architectures

llama.cpp's own test of its architectures (`tests/test-llama-archs.cpp`) describes a tiny model of
each. `pytest -m archs` writes these models, deeper and with weights of ours, and runs the laws of
[architecture.md](../design/architecture.md) on each against llama.cpp itself, on a CPU. A worse
result than the one below fails the test. This page is written by
`python tests/support/arch_sweep.py`.

What is checked of each model:

- **staged = whole**: all logits of two prompts one after another in one decoder, and of four decode
  steps after each, against `llama_decode`: uncut, cut at every legal place alone, and at all of
  them together. The caches are F32 without flash attention, and F16 with flash attention where
  llama.cpp takes it. Equal to the bit.
- **pruned = masked**: at every cut behind which each layer has attention alone. A recurrent layer
  behind the cut would have carried a dropped row's content on in its state; what llama.cpp computes
  with a hidden row is then another thing.
- **scores**: what `fastv` reads at a cut is the softmax in llama.cpp's own graph. No such cut is
  listed where the layers before it hold no full attention; a plan is then refused with that reason.
- **no leak**: a prompt after another one gives what it gives in a fresh decoder, to the bit.
- **together**: three captions, of which two are under way at once and which share the text before
  their images, each as alone. "one at a time" stands for a memory that is not shared; more than one
  is refused.

The models are random and small: this finds a wrong cut, a leak or an abort, it does not say that a
caption is good. Images are rows of random numbers; no projector is part of it. Some architectures
have forms that are not among these models.
"""


def numbers(some: Sequence[int]) -> str:
    """1, 2, 3, 5 as "1-3, 5"."""
    runs: list[list[int]] = []
    for n in some:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs) or "none"


def listing(title: str, rows: dict[str, Row]) -> list[str]:
    """A heading and one line for each model with its reason."""
    if not rows:
        return []
    lines = ["", f"## {title}", "", "| model | why |", "|---|---|"]
    return lines + [f"| {name} | {row['reason']} |" for name, row in rows.items()]


def page(rows: dict[str, Row]) -> str:
    """The whole page."""
    rows = {name: rows[name] for name in sorted(rows)}

    def of(result: str) -> dict[str, Row]:
        return {name: row for name, row in rows.items() if row["result"] == result}

    exact = of("exact")
    counts = {
        "exact": len(exact),
        "exact, but never cut": len(of("whole")),
        "refused": len(of("refused")),
        "not written": len(of("no model")),
        "wrong": len(of("wrong")),
        "aborted": len(of("aborted")) + len(of("hangs")),
    }
    lines = [
        HEAD,
        ", ".join(f"{n} {what}" for what, n in counts.items()) + f"; {len(rows)} in all.",
    ]
    lines += ["", "## Exact", "", "| model | layers | cuts | pruned = masked | scores | together |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, row in exact.items():
        together = "yes" if row["together"] else "one at a time"
        some = " | ".join(numbers(row[key]) for key in ("cuts", "masked", "scores"))
        lines.append(f"| {name} | {row['n_layer']} | {some} | {together} |")
    lines += listing("Exact, but never cut: a policy is refused", of("whole"))
    lines += listing("Refused at load", of("refused"))
    lines += listing("Not reached: no model was written", of("no model"))
    lines += listing("Wrong", of("wrong"))
    lines += listing("Aborted", of("aborted") | of("hangs"))
    return "\n".join(lines) + "\n"
