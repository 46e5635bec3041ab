#!/usr/bin/env python3
"""Damaged files, images and chat requests by the thousand, through the Python face.

    python tools/fuzz_files.py --cases 50000 --seed 0 --out fuzz.json

Every case must be taken or refused with an AtpError of one line and at most 500 characters, within
10 seconds; no process may end. Cases run in a child that says which case it has reached: one that
ends or hangs names its case, and a new child goes on behind it. A second run with the same file
goes on where the first one stopped. `--case N` runs one case again, in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent
WORKER = "fuzzing.worker"  # the module that tries cases
HANG_S = 10.0  # of one case
START_S = 120.0  # of a child
KEPT = 8  # numbers of cases that are kept for each finding


class Child:
    """A worker, the rows it sends, and what it said on stderr."""

    def __init__(self, folder: Path, seed: int, first: int, last: int) -> None:
        self.errors = (folder / "stderr.txt").open("w+b")
        end, theirs = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", WORKER, *map(str, (folder, seed, first, last, theirs))],
            pass_fds=(theirs,),
            cwd=TOOLS,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
        )
        os.close(theirs)
        self.pipe, self.rest = end, b""

    def rows(self, seconds: float) -> list[dict[str, Any]] | None:
        """The next rows; none when the child has ended; None when nothing comes in time."""
        ready, _, _ = select.select([self.pipe], [], [], seconds)
        if not ready:
            return None
        data = os.read(self.pipe, 1 << 16)
        if not data:
            return []
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [json.loads(line) for line in lines] or self.rows(seconds)

    def close(self) -> str:
        """Ends it; the line of its stderr that says why it ended."""
        self.process.kill()
        self.process.wait()
        os.close(self.pipe)
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").splitlines()
        self.errors.close()
        told = [line for line in lines if "ASSERT" in line or "abort" in line or "what()" in line]
        return (told or lines or [""])[-1 if not told else 0][:300]


def run(folder: Path, n_cases: int, seed: int, state: dict[str, Any], until: float) -> None:
    """Goes on with the cases of `state` up to `n_cases`, or until this time."""
    while state["next"] < n_cases and time.time() < until:
        child = Child(folder, seed, state["next"], n_cases)
        state["children"] += 1
        limit = START_S
        while time.time() < until:
            rows = child.rows(limit)
            if rows is None or not rows:
                break
            limit = HANG_S
            for row in rows:
                if "n" in row:
                    note(state, row)
        else:
            child.close()
            return
        code = None if rows is None else child.process.wait()
        why = child.close()
        if code == 0:
            continue
        if limit == START_S:
            raise SystemExit(f"the worker does not start: {why}")
        died = "hang" if code is None else name_of(code)
        kind = kind_of(state["next"])
        row = {"n": state["next"], "kind": kind, "came": died, "finding": died, "what": why}
        note(state, row)


def kind_of(number: int) -> str:
    """The kind of a case, for one whose worker could not say it."""
    sys.path.insert(0, str(TOOLS))
    from fuzzing.cases import ROUND

    return ROUND[number % len(ROUND)]


def name_of(code: int) -> str:
    """Of an exit status."""
    return signal.Signals(-code).name if code < 0 else f"exit {code}"


def note(state: dict[str, Any], row: dict[str, Any]) -> None:
    """Counts a case, and keeps what was found."""
    state["next"] = row["n"] + 1
    counts = state["counts"].setdefault(row["kind"], {})
    counts[row["came"]] = counts.get(row["came"], 0) + 1
    if "finding" in row:
        key = f"{row['kind']} | {row['finding']} | {row['what'][:160]}"
        found = state["findings"].setdefault(key, {"times": 0, "cases": []})
        found["times"] += 1
        found["cases"] = (found["cases"] + [row["n"]])[:KEPT]


def table(state: dict[str, Any]) -> str:
    """Cases by kind and outcome, then the findings."""
    columns = ["taken", "refused"]
    columns += sorted({c for row in state["counts"].values() for c in row} - set(columns))
    lines = [
        "| kind | cases | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * (len(columns) + 1),
    ]
    total: Counter[str] = Counter()
    for kind, counts in sorted(state["counts"].items()):
        total.update(counts)
        cells = [str(counts.get(c, 0)) for c in columns]
        lines.append(f"| {kind} | {sum(counts.values())} | " + " | ".join(cells) + " |")
    lines.append(
        f"| all | {sum(total.values())} | " + " | ".join(str(total[c]) for c in columns) + " |"
    )
    lines += [""] + [
        f"{found['times']} x {key}: cases {found['cases']}"
        for key, found in sorted(state["findings"].items(), key=lambda item: -item[1]["times"])
    ]
    return "\n".join(lines)


def one_case(folder: Path, seed: int, number: int) -> None:
    """One case again, with the whole traceback; the damaged file stays in the folder."""
    sys.path.insert(0, str(TOOLS))
    from fuzzing.cases import Cases

    case = Cases(folder, seed).case(number)
    print(f"case {number}: {case.kind}", flush=True)
    case.act()


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, help="JSON of counts and findings; a run goes on from it"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    parser.add_argument("--folder", type=Path, help="of the files; a temporary one if not given")
    parser.add_argument("--case", type=int, help="run this case alone, here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if args.case is not None:
            one_case(folder, args.seed, args.case)
            return 0
        state: dict[str, Any] = {"seed": args.seed, "next": 0, "children": 0, "seconds": 0.0}
        state |= {"counts": {}, "findings": {}}
        if args.out and args.out.exists():
            state = json.loads(args.out.read_text(encoding="utf-8"))
            if state["seed"] != args.seed:
                raise SystemExit(f"{args.out} is of seed {state['seed']}; name another file")
        started = time.time()
        try:
            run(folder, args.cases, args.seed, state, started + args.seconds)
        finally:
            state["seconds"] += time.time() - started
            if args.out:
                args.out.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    print(table(state))
    return 1 if state["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
