"""Staged decoding against plain llama_decode: same build, same weights, interleaved, medians.

Prints a table and saves JSON with provenance. Prefill and decode of a LLaVA-shaped prompt: a few
text rows, the image tokens of one 24x24 grid, a question. The image embeddings are random: time
does not depend on what they say.

    python benchmarks/bench_stages.py MODEL.gguf [--keep 0.25] [--after 0.333] [--runs 5] [--json J]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from provenance import provenance

from atp_cpp import _core

N_TEXT_BEFORE = 5
GRID = (24, 24)
N_QUESTION = 40
N_DECODE = 32


@dataclass(frozen=True)
class Case:
    """One way to run the prompt. plan None: plain llama_decode."""

    name: str
    plan: list[_core.Cut] | None
    ideal: float  # layers x rows computed, as a share of the unpruned number


def make_sequence(n_embd_inp: int) -> _core.Sequence:
    """A prompt of text, one image and a question. Embeddings float32 [576, n_embd_inp]."""
    rng = np.random.default_rng(0)
    seq = _core.Sequence(n_embd_inp)
    seq.add_text([int(t) for t in rng.integers(5, 250, N_TEXT_BEFORE)])
    n = GRID[0] * GRID[1]
    seq.add_image((0.02 * rng.standard_normal((n, n_embd_inp))).astype(np.float32), grid=GRID)
    seq.add_text([int(t) for t in rng.integers(5, 250, N_QUESTION)])
    return seq


def ideal_share(plan: list[_core.Cut], n_layer: int, n_text: int, n_image: int) -> float:
    """Share of layer x row products that a plan leaves, text rows included."""
    rows, first, live = 0.0, 0, n_image
    for cut in plan:
        rows += (cut.after - first) * (n_text + live)
        first, live = cut.after, max(1, round(cut.keep * n_image))
    rows += (n_layer - first) * (n_text + live)
    return rows / (n_layer * (n_text + n_image))


def cases(n_layer: int, legal: list[int], keep: float, after: float, n_text: int) -> list[Case]:
    """Plain llama.cpp, staged without pruning (1 and 4 stages), pruned by fastv and by grid."""

    def place(depth: float) -> int:
        return min(legal, key=lambda il: abs(il - depth * n_layer))

    n_image = GRID[0] * GRID[1]
    cut = place(after)
    plans: list[tuple[str, list[_core.Cut] | None]] = [
        ("llama.cpp", None),
        ("one stage", []),
        (
            "4 stages, nothing dropped",
            [_core.Cut(il, "none") for il in sorted({place(0.25), place(0.5), place(0.75)})],
        ),
        (f"fastv keep={keep} after={cut}", [_core.Cut(cut, "fastv", keep)]),
        (f"grid keep={keep} after={cut}", [_core.Cut(cut, "grid", keep)]),
    ]
    return [
        Case(name, plan, 1.0 if plan is None else ideal_share(plan, n_layer, n_text, n_image))
        for name, plan in plans
    ]


class Runner:
    """Runs one case at a time and keeps its times."""

    def __init__(self, model: str, n_threads: int, n_ubatch: int) -> None:
        params = _core.ModelParams(model, n_ctx=1024, n_ubatch=n_ubatch, n_threads=n_threads)
        self.staged = _core.Decoder(params)
        self.plain = _core.Reference(params)
        self.seq = make_sequence(self.staged.n_embd_inp)
        self.kv_bytes: dict[str, int] = {}

    def run(self, case: Case) -> tuple[float, float]:
        """(prefill ms, decode tokens/s) of one run."""
        start = time.perf_counter()
        if case.plan is None:
            self.plain.prefill(self.seq)
        else:
            self.staged.remove(0)
            self.staged.set_plan(case.plan)
            start = time.perf_counter()
            self.staged.prefill(self.seq, n_predict=N_DECODE)
            self.kv_bytes[case.name] = self.staged.kv_bytes
        prefill = 1e3 * (time.perf_counter() - start)
        start = time.perf_counter()
        for i in range(N_DECODE):
            token, pos = 7 + i, self.seq.n_pos + i
            if case.plan is None:
                self.plain.decode(token, pos)
            else:
                self.staged.decode([(0, token, pos)])
        return prefill, N_DECODE / (time.perf_counter() - start)


def measure(runner: Runner, todo: list[Case], runs: int) -> dict[str, dict[str, list[float]]]:
    """Interleaved runs, one warm-up round thrown away."""
    times: dict[str, dict[str, list[float]]] = {
        c.name: {"prefill_ms": [], "decode_tps": []} for c in todo
    }
    for k in range(runs + 1):
        for case in todo:
            prefill, decode = runner.run(case)
            if k > 0:
                times[case.name]["prefill_ms"].append(prefill)
                times[case.name]["decode_tps"].append(decode)
        print(f"round {k} of {runs} done", flush=True)
    return times


def summarise(
    todo: list[Case], times: dict[str, dict[str, list[float]]], kv: dict[str, int]
) -> list[dict[str, object]]:
    """One row a case: medians, and ratios to llama.cpp taken round by round before the median."""
    base = times[todo[0].name]
    rows: list[dict[str, object]] = []
    for case in todo:
        t = times[case.name]
        ratio = statistics.median(
            a / b for a, b in zip(t["prefill_ms"], base["prefill_ms"], strict=True)
        )
        speed = statistics.median(
            a / b for a, b in zip(t["decode_tps"], base["decode_tps"], strict=True)
        )
        rows.append(
            {
                "case": case.name,
                "prefill_ms": statistics.median(t["prefill_ms"]),
                "prefill_ratio": ratio,
                "ideal_ratio": case.ideal,
                "of_ideal_speedup": case.ideal / ratio,
                "decode_tps": statistics.median(t["decode_tps"]),
                "decode_ratio": speed,
                "kv_bytes": kv.get(case.name),
            }
        )
    return rows


def print_table(rows: list[dict[str, object]]) -> None:
    """A markdown table of the rows."""
    heads = ("case", "prefill ms", "/ llama.cpp", "ideal", "of ideal speed-up")
    heads += ("decode t/s", "/ llama.cpp", "KV MB")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for r in rows:
        kv = f"{r['kv_bytes'] / 1e6:.1f}" if isinstance(r["kv_bytes"], int) else "-"
        cells = [r["case"], f"{r['prefill_ms']:.0f}", f"{r['prefill_ratio']:.3f}"]
        cells += [f"{r['ideal_ratio']:.3f}", f"{r['of_ideal_speedup']:.2f}"]
        cells += [f"{r['decode_tps']:.1f}", f"{r['decode_ratio']:.3f}", kv]
        print(f"| {' | '.join(map(str, cells))} |")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--after", type=float, default=1 / 3, help="fraction of depth")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--ubatch", type=int, default=512)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    runner = Runner(args.model, args.threads, args.ubatch)
    n_text = N_TEXT_BEFORE + N_QUESTION
    todo = cases(runner.staged.n_layer, runner.staged.legal_cuts, args.keep, args.after, n_text)
    rows = summarise(todo, measure(runner, todo, args.runs), runner.kv_bytes)
    print_table(rows)
    if args.json:
        record = {
            "what": "bench_stages",
            "runs": args.runs,
            "provenance": provenance(Path(args.model)),
            "rows": rows,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
