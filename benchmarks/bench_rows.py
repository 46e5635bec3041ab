"""Speed of one decode step by the number of captions in it: what batching can give.

B captions of the same prompt (text, one image's 576 tokens, a question) are prefilled into one
decoder, then decoded together, one row each a step. Rounds go through all B in turn; medians.

    python benchmarks/bench_rows.py MODEL.gguf [--plan fastv:keep=0.175,after=2] [--json J]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from bench_stages import make_sequence
from provenance import provenance

from atp_cpp import _core
from atp_cpp.options.plan import parse_plan, resolve, settle

ROWS = (1, 2, 4, 8, 16)


class Rows:
    """A decoder that holds B captions at a time."""

    def __init__(self, model: str, plan: str, n_threads: int, n_max: int) -> None:
        self.decoder = _core.Decoder(
            _core.ModelParams(model, n_ctx=1024 * n_max, n_threads=n_threads, n_seq_max=n_max)
        )
        n_layer, legal = self.decoder.n_layer, self.decoder.legal_cuts
        cuts = settle(parse_plan(plan), n_layer, legal, ())
        self.decoder.set_plan(resolve(cuts, n_layer, legal))
        self.sequence = make_sequence(self.decoder.n_embd_inp)

    def step_ms(self, n_rows: int, n_steps: int) -> float:
        """Median time of a step of `n_rows` rows, without the first two, which build."""
        self.decoder.release()
        room = n_rows * (self.sequence.n_rows + n_steps + 2)  # the first prefill makes the caches
        for seq_id in range(n_rows):
            self.decoder.prefill(self.sequence, seq_id=seq_id, n_predict=room)
        times = []
        for i in range(n_steps + 2):
            rows = [(k, 7 + i, self.sequence.n_pos + i) for k in range(n_rows)]
            start = time.perf_counter()
            self.decoder.decode(rows)
            times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times[2:])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--plan", action="append", help="a policy; may be repeated")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    results = []
    print("| plan | captions a step | ms a step | tokens/s | of one alone |")
    print("|---|---:|---:|---:|---:|")
    for plan in args.plan or ["none"]:
        rig = Rows(args.model, plan, args.threads, max(args.rows))
        times: dict[int, list[float]] = {n: [] for n in args.rows}
        for _ in range(args.runs):
            for n in args.rows:
                times[n].append(rig.step_ms(n, args.steps))
        base = 1 / statistics.median(times[args.rows[0]]) * args.rows[0]
        for n in args.rows:
            ms = statistics.median(times[n])
            results.append({"plan": plan, "rows": n, "step_ms": ms, "tokens_per_s": 1e3 * n / ms})
            print(
                f"| {plan} | {n} | {ms:.1f} | {1e3 * n / ms:.1f} | {n / ms / base:.2f} |",
                flush=True,
            )
    if args.json:
        record = {"what": "bench_rows", "provenance": provenance(Path(args.model)), "rows": results}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
