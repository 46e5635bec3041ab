"""Peak resident memory of one caption: this program against llama.cpp's llama-mtmd-cli.

Same model, projector, image and number of tokens; each program runs alone, as its own process.
llama-mtmd-cli reserves a KV cache for its whole context, ours is as long as the prompt: so it is
measured with its default context and with one that just holds this prompt.
Build llama-mtmd-cli from the same llama.cpp source (docs/results/benchmarks.md says how).

    python benchmarks/bench_memory.py --cli llama-mtmd-cli -m M.gguf --mmproj P.gguf --image I.png
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from provenance import provenance

N_PREDICT = 16
TIGHT_CONTEXT = 1024  # holds 576 image tokens, the question and the answer


def peak_mb(command: list[str]) -> float:
    """Peak resident set size in MB of one run; its output goes nowhere.

    Raises:
        RuntimeError: the program failed.
    """
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
    pid = os.posix_spawn(command[0], command, dict(os.environ), file_actions=null)
    _, status, usage = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {code}")
    kib = usage.ru_maxrss if sys.platform != "darwin" else usage.ru_maxrss / 1024
    return kib * 1024 / 1e6


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cli", required=True, help="llama-mtmd-cli")
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--mmproj", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--policy", default="fastv:keep=0.25,after=0.333")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    files = ["-m", args.model, "--mmproj", args.mmproj, "-p", "Describe the image."]
    length = ["-n", str(N_PREDICT), "--temp", "0"]
    ours = [sys.executable, "-m", "atp_cpp", "caption", args.image, *files, *length]
    theirs = [args.cli, *files, "--image", args.image, *length]
    rows = {
        "llama-mtmd-cli, default context": peak_mb(theirs),
        f"llama-mtmd-cli -c {TIGHT_CONTEXT}": peak_mb([*theirs, "-c", str(TIGHT_CONTEXT)]),
        "atp-cpp, nothing dropped": peak_mb(ours),
        f"atp-cpp, {args.policy}": peak_mb([*ours, "--policy", args.policy]),
    }
    print("| program | peak RSS, MB |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:.0f} |")
    if args.json:
        record = {"what": "bench_memory", "provenance": provenance(Path(args.model)), "rows": rows}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
