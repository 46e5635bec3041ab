"""The laws over tiny models of every architecture of llama.cpp, and the table of what holds.

    python tests/support/arch_sweep.py                  run all, write the table
    python tests/support/arch_sweep.py jamba gemma3n    run these, write their rows

Each model is written, examined in a process of its own and deleted. The table is
data/architectures.json; docs/results/architectures.md shows it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE.parent / "tools"), str(HERE)]

import make_arch_models as models  # noqa: E402
from support import arch_page  # noqa: E402

WORKER = Path(__file__).with_name("arch_worker.py")
TABLE = HERE / "data" / "architectures.json"
PAGE = HERE.parent / "docs" / "results" / "architectures.md"
SECONDS = 900  # for one model, on a busy machine
Row = dict[str, Any]


def environment() -> dict[str, str]:
    """For a process that may abort: no debugger is attached to it then, which takes seconds."""
    return os.environ | {"GGML_NO_BACKTRACE": "1"}


def examine(writer: Path, model: models.Model, folder: Path) -> Row:
    """One model's row of the table."""
    try:
        path = models.write(writer, model, folder)
    except models.WriterError as error:
        return {"result": "no model", "reason": short(str(error))}
    command = [sys.executable, str(WORKER), str(path)]
    with (folder / f"{model.name}.log").open("w+", encoding="utf-8") as log:
        try:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                timeout=SECONDS,
                env=environment(),
            )
        except subprocess.TimeoutExpired:
            done = None
        finally:
            path.unlink()
        log.seek(0)
        lines = log.read().splitlines()
    trials = [line.removeprefix("trying: ") for line in lines if line.startswith("trying: ")]
    at = trials[-1] if trials else "start"
    if done is None:
        return {"result": "hangs", "reason": f"{at}: no end after {SECONDS} s"}
    if "Traceback (most recent call last):" in lines:
        raise RuntimeError(f"{model.name}: arch_worker.py failed at {at}:\n" + "\n".join(lines))
    if done.returncode != 0:
        said = [line for line in lines if "GGML_ASSERT" in line] or lines[-1:]
        return {"result": "aborted", "reason": f"{at}: exit code {done.returncode}: {said[0]}"}
    return row_of(json.loads(done.stdout))


def short(text: str) -> str:
    """A message without the paths of this machine."""
    return re.sub(r"\S*/(?=[\w.-]+)", "", text)


def row_of(found: dict[str, Any]) -> Row:
    """A row from what the laws found."""
    info, refused = found["info"], found["refused"]
    if found["broken"]:
        return {"result": "wrong", "reason": "; ".join(found["broken"])}
    if "model" in refused:
        return {"result": "refused", "reason": short(refused["model"])}
    return {
        "result": "exact" if info["legal_cuts"] else "whole",
        "reason": short(refused.get("cuts", "")),
        "n_layer": info["n_layer"],
        "cuts": info["legal_cuts"],
        "masked": found["tried"].get("pruned = masked", []),
        "scores": found["tried"].get("scores = softmax", []),
        "together": info["can_batch"],
    }


def selected(names: Sequence[str]) -> list[models.Model]:
    """These models, or all."""
    everything = models.all_models(models.find_writer())
    if unknown := set(names) - {model.name for model in everything}:
        raise SystemExit(f"error: no model is named {', '.join(sorted(unknown))}")
    return [model for model in everything if not names or model.name in names]


def read_table() -> dict[str, Row]:
    """The table that is stored."""
    return dict(json.loads(TABLE.read_text("utf-8")))


def write_table(rows: dict[str, Row]) -> None:
    """Store the table, one line a model, and the page that shows it."""
    lines = [f"{json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows)]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(arch_page.page(rows), "utf-8")


def main(names: list[str]) -> int:
    """Examine, print each row as it comes, store them."""
    rows = read_table() if names else {}
    writer = models.find_writer()
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(int(os.environ.get("ATP_ARCHS_AT_ONCE", "2"))) as pool,
    ):
        wanted = selected(names)
        futures = {pool.submit(examine, writer, m, Path(folder)): m.name for m in wanted}
        for future in as_completed(futures):
            name = futures[future]
            rows[name] = future.result()
            print(name, rows[name]["result"], rows[name]["reason"], flush=True)
            write_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
