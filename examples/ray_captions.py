"""Captions with Ray Data on this machine: two actors, each with a model of its own.

    pip install "atp_cpp[ray]"
    python examples/ray_captions.py FOLDER --out captions.jsonl
    python examples/ray_captions.py --kill-one --out captions.jsonl

Without a folder it makes 200 pictures. With --kill-one it ends the first actor that has given rows
by SIGKILL: Ray starts another one in its place and gives it the work that was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own would leave a busy machine to others

import numpy as np
import ray
from PIL import Image, ImageDraw

from atp_cpp import CaptionBatch

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("red", "green", "blue", "yellow", "teal", "brown", "gray", "black")


class CaptionsWithPid(CaptionBatch):
    """A CaptionBatch that says which process made a row."""

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """See CaptionBatch."""
        out = super().__call__(batch)
        return out | {"pid": np.full(len(out["caption"]), os.getpid(), dtype=np.int64)}


def draw_pictures(folder: Path, n: int) -> None:
    """Shapes as the demo model knows them: one or two on a canvas."""
    rng = np.random.default_rng(0)
    for i in range(n):
        image = Image.new("RGB", (336, 336), tuple(rng.integers(225, 256, 3).tolist()))
        pen = ImageDraw.Draw(image)
        for k in range(1 + i % 2):
            side, top = int(rng.integers(60, 120)), int(rng.integers(20, 200))
            left = int(rng.integers(20, 60)) + 168 * k
            box = (left, top, left + side, top + side)
            colour = COLOURS[int(rng.integers(len(COLOURS)))]
            shape = SHAPES[int(rng.integers(len(SHAPES)))]
            if shape == "circle":
                pen.ellipse(box, fill=colour)
            elif shape == "rectangle":
                pen.rectangle(box, fill=colour)
            else:
                pen.polygon(
                    [(left, box[3]), (box[2], box[3]), (left + side // 2, top)], fill=colour
                )
        image.save(folder / f"{i:04}.png")


def captions(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows, as they come."""
    paths = [str(p) for p in sorted(folder.absolute().rglob("*")) if p.is_file()]
    table = ray.data.from_items(
        [{"image": p, "custom_id": Path(p).name} for p in paths],
        override_num_blocks=max(1, -(-len(paths) // options.rows_per_call)),
    ).map_batches(
        CaptionsWithPid,
        fn_constructor_kwargs={
            "model": options.model, "mmproj": options.mmproj, "atp": options.atp,
            "prompt": options.prompt, "batch_size": options.batch_size,
            "n_threads": max(1, (os.cpu_count() or 1) // options.actors),
            "kv_budget": options.kv_budget,
        },
        batch_size=options.rows_per_call,
        compute=ray.data.ActorPoolStrategy(size=options.actors, max_tasks_in_flight_per_actor=1),
    )  # fmt: skip
    yield from table.iter_rows()


def main() -> int:
    """Reads the arguments, runs, and says what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="of images (default: 200 drawn here)")
    parser.add_argument("--out", type=Path, default=Path("captions.jsonl"))
    parser.add_argument("--parquet", type=Path, help="the same rows as a Parquet file")
    parser.add_argument("-m", "--model", help="GGUF of the text model (default: the demo model)")
    parser.add_argument("--mmproj", help="GGUF of its vision projector")
    parser.add_argument("--atp", help="GGUF of its ATP sidecar")
    parser.add_argument("-p", "--prompt", default="Describe the image.")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4, help="captions at once in an actor")
    parser.add_argument("--rows-per-call", type=int, default=20)
    parser.add_argument("--kv-budget", default="256M", help="of one actor")
    parser.add_argument("--kill-one", action="store_true", help="SIGKILL an actor on the way")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = options.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            draw_pictures(folder, 200)
        ray.init(num_cpus=options.actors + 1, include_dashboard=False, log_to_driver=False,
                 object_store_memory=100 << 20)  # fmt: skip
        stack.callback(ray.shutdown)
        n_rows, killed = 0, 0
        rows = []
        with options.out.open("w", encoding="utf-8") as out:
            for row in captions(folder, options):
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
                out.flush()
                n_rows += 1
                if options.parquet:
                    rows.append(row)
                if options.kill_one and not killed:
                    killed = row["pid"]
                    os.kill(killed, signal.SIGKILL)
                    print(f"killed actor {killed} after {n_rows} rows", file=sys.stderr)
        if options.parquet:
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(rows), options.parquet)
    print(f"{n_rows} rows in {options.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
