"""Memory of a long batch: RSS while the demo model captions thousands of images.

Each way (Captioner.caption_many in a process of its own, and the command atp-cpp caption DIR --out)
runs as a child, whose resident memory and written rows are read twice a second. The slope is that
of a line fitted by least squares through (rows, RSS) after the warm-up. Images are JPEG files of
changing sizes and captions of changing lengths, so that buffers of changing sizes come and go.

    python benchmarks/memory_batch.py --images 3000 --json J
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from photos import drawn
from provenance import provenance

from atp_cpp import Captioner
from atp_cpp.batch.load.heap import large_blocks_apart
from atp_cpp.captioner import model_files
from atp_cpp.options.plan import SamplingConfig

EVERY_S = 0.5
DISTINCT = 200  # files that differ; the others are links to them
SIDES = (200, 1400)
LAST = 50  # rows at the end that do not count


def write_images(folder: Path, count: int) -> None:
    """`count` JPEG files of changing size."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    for number in range(count):
        path = folder / f"{number:05d}.jpg"
        if number < DISTINCT:
            w, h = (int(v) for v in rng.integers(*SIDES, 2))
            drawn(number).resize((w, h)).save(path, quality=90)
        else:
            os.link(folder / f"{number % DISTINCT:05d}.jpg", path)


def child(folder: Path, out: Path, batch_size: int, n_predict: int) -> None:
    """caption_many over a folder, a line a row, as docs/guide/many-images.md has it."""
    large_blocks_apart()
    paths = sorted(folder.iterdir())
    with Captioner() as captioner, out.open("wb") as rows:
        draw = SamplingConfig(n_predict=n_predict)
        for row in captioner.caption_many(paths, batch_size=batch_size, sampling=draw):
            rows.write(row.as_line())
            rows.flush()


def lines(path: Path, last: tuple[int, int]) -> tuple[int, int]:
    """(lines, bytes read) of a growing file, from what was known before."""
    if not path.exists():
        return last
    count, at = last
    with path.open("rb") as file:
        file.seek(at)
        new = file.read()
    return count + new.count(b"\n"), at + len(new)


def watch(command: list[str], out: Path) -> list[tuple[int, int]]:
    """(rows written, RSS in bytes) twice a second while a child runs.

    Raises:
        RuntimeError: it failed.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    samples: list[tuple[int, int]] = []
    known = (0, 0)
    while process.poll() is None:
        fields = Path(f"/proc/{process.pid}/statm").read_text().split()
        known = lines(out, known)
        if len(fields) > 1 and known[0] > 0 and int(fields[1]) > 0:
            samples.append((known[0], page * int(fields[1])))
        time.sleep(EVERY_S)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    return samples


def slope(samples: list[tuple[int, int]], warm_up: int, count: int) -> dict[str, float]:
    """Bytes an image, by least squares, with its standard error; and the range of RSS.

    The last rows are left out: the loading threads have ended by then and gave their memory back.
    """
    after = np.array([s for s in samples if warm_up <= s[0] <= count - LAST], dtype=float)
    x, y = after[:, 0] - after[:, 0].mean(), after[:, 1]
    b = float(x @ y / (x @ x))
    residual = y - y.mean() - b * x
    error = float(np.sqrt(residual @ residual / max(1, len(x) - 2) / (x @ x)))
    return {
        "bytes_per_image": b,
        "standard_error": error,
        "least_mb": y.min() / 1e6,
        "most_mb": y.max() / 1e6,
        "first_mb": y[0] / 1e6,
        "last_mb": y[-1] / 1e6,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--warm-up", type=int, default=1500, help="rows before the fitted line")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--n-predict", type=int, default=24)
    parser.add_argument(
        "--only", choices=("caption_many", "command"), help="keep the other of the JSON file"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child, args.batch_size, args.n_predict)
        return

    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp) / "images"
        write_images(folder, args.images)
        sizes = ["--batch-size", str(args.batch_size)]
        parallel = ["-np", str(args.batch_size)]
        length = ["--n-predict", str(args.n_predict)]
        out = {name: Path(temp) / f"{name}.jsonl" for name in ("caption_many", "command")}
        me = [sys.executable, __file__, *sizes, *length, "--child", str(folder)]
        command = [sys.executable, "-m", "atp_cpp", "caption", str(folder)]
        ways = {
            "caption_many": [*me, str(out["caption_many"])],
            "command": [
                *command,
                "--out",
                str(out["command"]),
                "-n",
                str(args.n_predict),
                *parallel,
            ],
        }
        found: dict[str, dict[str, object]] = {}
        if args.only and args.json and args.json.exists():
            found = json.loads(args.json.read_text())["ways"]
        for name in [args.only] if args.only else list(ways):
            start = time.monotonic()
            samples = watch(ways[name], out[name])
            n_rows = lines(out[name], (0, 0))[0]
            found[name] = {
                "rows": n_rows,
                "seconds": time.monotonic() - start,
                "slope": slope(samples, args.warm_up, args.images),
                "slope_from_300": slope(samples, 300, args.images),
                "samples": samples,
            }
            print(name, n_rows, "rows", json.dumps(found[name]["slope"]), flush=True)
    if args.json:
        record = {
            "what": "memory_batch",
            "provenance": provenance(model_files(None, None)[0]),
            "images": args.images,
            "warm_up": args.warm_up,
            "batch_size": args.batch_size,
            "n_predict": args.n_predict,
            "ways": found,
        }
        args.json.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
