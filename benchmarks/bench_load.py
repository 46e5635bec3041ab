"""Captions beside busy loops: what other programs' load costs, by number of threads.

Each number of threads has a process of its own, alive through all rounds; the rounds go through
them in turn. Prints a table and saves JSON. CPU time is that of the process itself.

    python benchmarks/bench_load.py [--loops 0 2 8 16] [--threads 1 --threads 0] [--json J]

0 threads are the default. Unset GOMP_SPINCOUNT and OMP_WAIT_POLICY before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

IMAGE = Path(__file__).resolve().parents[1] / "examples" / "scene.png"
CAPTION = """
import json, sys, time
from atp_cpp import Captioner
captioner = Captioner(n_threads=int(sys.argv[1]))
captioner.caption(sys.argv[2])
print("ready", flush=True)
for line in sys.stdin:
    cpu, start = time.process_time(), time.perf_counter()
    report = captioner.caption(sys.argv[2]).report
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    ms = [1e3 * wall, 1e3 * cpu, report.t_encode, report.t_prefill, report.t_decode]
    print(json.dumps(ms), flush=True)
"""
COLUMNS = ("wall_ms", "cpu_ms", "encode_ms", "prefill_ms", "decode_ms")


class Contestant:
    """A process that captions the image whenever it is told to."""

    def __init__(self, n_threads: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CAPTION, str(n_threads), str(IMAGE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._line() != "ready":
            raise RuntimeError(f"the process with {n_threads} threads did not start")

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def run(self) -> list[float]:
        """Milliseconds of one caption, as in COLUMNS."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return [float(ms) for ms in json.loads(self._line())]

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(threads: list[int], n_loops: int, rounds: int) -> list[dict[str, float]]:
    """One row for each number of threads: medians over the rounds, beside the busy loops."""
    contestants = [Contestant(n) for n in threads]
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_loops)]
    try:
        runs = [[c.run() for c in contestants] for _ in range(rounds)]
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
        for contestant in contestants:
            contestant.close()
    rows = []
    for i, n in enumerate(threads):
        medians = [statistics.median(run[i][k] for run in runs) for k in range(len(COLUMNS))]
        row = dict(zip(COLUMNS, medians, strict=True))
        ratio = statistics.median(run[i][0] / run[0][0] for run in runs)
        rows.append({"n_loops": n_loops, "n_threads": n, "ratio": ratio, **row})
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loops", type=int, nargs="+", default=[0, 2, 8, 16])
    parser.add_argument("--threads", type=int, action="append", help="the first is the ruler")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"load average before: {load:.2f}\n\n| busy loops | threads | ms | ratio | CPU ms |")
    print("|---:|---:|---:|---:|---:|")
    rows = []
    for n_loops in args.loops:
        for row in measure(args.threads or [1, 0], n_loops, args.rounds):
            cells = [row["n_loops"], row["n_threads"], f"{row['wall_ms']:.0f}"]
            cells += [f"{row['ratio']:.2f}", f"{row['cpu_ms']:.0f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
            rows.append(row)
    if args.json:
        record = {"what": "bench_load", "load_before": load, "n_cores": os.cpu_count()}
        record |= {"rounds": args.rounds, "rows": rows}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
