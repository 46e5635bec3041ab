"""What ATP itself costs: prefill with its scores and thresholds, against the same keep lists given.

Both run the same layers over the same rows; the one computes the attention scores after each cut,
the thresholds and the keep lists, the other is handed the lists the first one made. Interleaved,
the difference is taken within a round; medians. The weights are made up: time does not depend on
what they say, and a budget fixes how much is kept.

    python benchmarks/bench_atp.py MODEL.gguf [--budget 0.25] [--runs 9] [--json J]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_stages import make_sequence
from provenance import provenance

from atp_cpp import _core
from atp_cpp.sidecar.sidecar import AtpSidecar, tensor_shapes
from atp_cpp.train.spec import default_cuts

KEPT = (0.25, 0.15, 0.08)  # shares after each cut, in proportion


def made_up_sidecar(n_layer: int, path: Path) -> _core.AtpWeights:
    """Modules with random weights at the reference's cuts, scaled to this depth."""
    cuts = default_cuts(n_layer)
    rng = np.random.default_rng(0)
    sidecar = AtpSidecar(
        arch="llama", name="bench", base_name="bench", cuts=cuts, n_layer=n_layer, n_embd=1,
        n_head=1, fingerprint="0" * 64, grid=(24, 24), score_norm="relative",
        divisor="rows_visible", score="avg", rule="union", strides=(2, 3, 4, 6, 8, 12),
        lambda_sample=3.0, n_bins=64, n_hidden=64, activation="silu", budget=0.25,
        mode="thresholds", data="none", kept=KEPT[: len(cuts)],
        tensors={
            name: rng.normal(0, 0.1, shape).astype(np.float32)
            for name, shape in tensor_shapes(cuts, n_bins=64, n_hidden=64).items()
        },
    )  # fmt: skip
    sidecar.write_gguf(path)
    return _core.load_sidecar(str(path))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    decoder = _core.Decoder(_core.ModelParams(args.model, n_ctx=1024, n_threads=args.threads))
    seq = make_sequence(decoder.n_embd_inp)
    with tempfile.TemporaryDirectory() as folder:
        weights = made_up_sidecar(decoder.n_layer, Path(folder) / "atp.gguf")
    atp = _core.atp_plan(
        weights, n_layer=decoder.n_layer, legal_cuts=decoder.legal_cuts, budget=args.budget
    )

    def prefill(plan: list[_core.Cut]) -> tuple[float, list[np.ndarray]]:
        decoder.remove(0)
        decoder.set_plan(plan)
        start = time.perf_counter()
        kept = decoder.prefill(seq)["kept"]
        return 1e3 * (time.perf_counter() - start), kept

    _, lists = prefill(atp)
    given = [
        _core.Cut(cut.after, lambda _, kept=kept: kept)
        for cut, kept in zip(atp, lists, strict=True)
    ]
    prefill(given)
    rounds = [(prefill(atp)[0], prefill(given)[0]) for _ in range(args.runs)]
    whole = statistics.median(prefill([])[0] for _ in range(2))
    cost = statistics.median(a - b for a, b in rounds)
    without = statistics.median(b for _, b in rounds)
    row = {
        "cuts": [cut.after for cut in atp],
        "n_kept": [len(kept) for kept in lists],
        "atp_ms": statistics.median(a for a, _ in rounds),
        "given_ms": without,
        "cost_ms": cost,
        "cost_of_pruned_prefill": cost / without,
        "whole_ms": whole,
        "cost_of_whole_prefill": cost / whole,
        "rounds": rounds,
    }
    print(json.dumps({k: v for k, v in row.items() if k != "rounds"}, indent=1))
    if args.json:
        record = {"what": "bench_atp", "provenance": provenance(Path(args.model)), "row": row}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
