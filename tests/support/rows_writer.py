"""A run without a model: captions follow from names. A program of its own, to be killed.

``rows_writer.py ROWS N`` appends rows for N images until they are all there, and prints what went
wrong if something did. ``rows_writer.py chaos FOLDER N KILLS`` does that KILLS times in processes
that are killed at random moments, with texts and with writes in small pieces, which tear often.
"""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from atp_cpp.batch.output.rows_file import RowsFile
from atp_cpp.batch.output.sink import Sink
from atp_cpp.batch.output.text_files import TextFiles
from atp_cpp.batch.source.item import Item
from atp_cpp.errors import AtpError
from support.made_rows import CONFIG, made_row

PROMPTS = ("What?", "Where?")


def items(folder, n):
    for i in range(n):
        image = str(folder / f"{i}.jpg")
        yield Item(image, image, image, PROMPTS[: 1 + i % 2])


def run(rows_path, folder, n, *, existing=None):
    """One run to its end."""
    texts = TextFiles(existing) if existing else None
    with RowsFile(rows_path) as rows:
        sink = Sink(rows=rows, texts=texts, config_hash=CONFIG)
        waiting = []
        for item in sink.pending(items(folder, n)):
            waiting += [made_row(item.custom_id, prompt) for prompt in item.prompts]
            random.shuffle(waiting)
            while len(waiting) > 4:  # rows come in another order, as from a batch
                sink.put(waiting.pop())
        for row in waiting:
            sink.put(row)
        sink.close()
        return rows.n_written


def tear_writes():
    """Every write in pieces of at most 100 bytes, with time between them."""
    whole = os.write

    def write(descriptor, data):
        time.sleep(0.0001)
        return whole(descriptor, data[: random.randint(1, 100)])

    os.write = write


def chaos(folder, n, n_kills):
    """Kills, resumes, and prints how often a process died, and how often it left a torn line."""
    random.seed(1)
    n_killed = n_torn = 0
    n_rows = []  # after each kill
    rows_path = folder / "rows.jsonl"
    for _ in range(n_kills):
        child = os.fork()
        if child == 0:
            random.seed()
            tear_writes()
            run(rows_path, folder, n, existing="append")
            os._exit(0)
        time.sleep(random.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        n_killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        data = rows_path.read_bytes() if rows_path.exists() else b""
        n_torn += not (data or b"\n").endswith(b"\n")
        n_rows.append(data.count(b"\n"))
    run(rows_path, folder, n, existing="append")
    print(json.dumps({"n_killed": n_killed, "n_torn": n_torn, "n_rows": n_rows}))


def program(*args, prefix=(), limit=None):
    """Runs this file as a program, perhaps with a limit to the size of files."""

    def preexec():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [*prefix, sys.executable, __file__, *map(str, args)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        preexec_fn=preexec if limit else None,
    )


def main():
    logging.getLogger("atp_cpp").setLevel(logging.ERROR)
    if sys.argv[1] == "chaos":
        chaos(Path(sys.argv[2]), *map(int, sys.argv[3:]))
        return
    path = Path(sys.argv[1])
    try:
        print(run(path, path.parent, int(sys.argv[2])))
    except AtpError as error:
        print(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
