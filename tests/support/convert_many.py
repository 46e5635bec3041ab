"""Many conversions in one process of their own: starting it takes longer than they do."""

import json
import subprocess
import sys
from dataclasses import asdict

from atp_cpp.convert.worker import Job

_CONVERT = """
import json, sys
from atp_cpp.convert import worker
worker.import_upstream()
for line in sys.stdin:
    try:
        worker.run_job(worker.Job(**json.loads(line)), lambda event: None)
    except worker.ConvertError as error:
        print("refused:", error)
    else:
        print("converted")
"""


def convert_many(folders):
    """Converts in F32: [(text model, projector)], each beside its checkpoint."""
    files, words = _tried(folders)
    assert words == ["converted"] * len(files), words
    return files


def refuse_many(folders):
    """Why each cannot be converted."""
    _, words = _tried(folders)
    assert all(word.startswith("refused: ") for word in words), words
    return [word.removeprefix("refused: ") for word in words]


def _tried(folders):
    files = [(f.with_suffix(".gguf"), f.with_suffix(".mmproj.gguf")) for f in folders]
    jobs = [
        Job(
            folder=str(folder),
            name=folder.name,
            text_out=str(text),
            text_type="f32",
            stored_type="f16",
            mmproj_out=str(mmproj),
            mmproj_type="f32",
        )
        for folder, (text, mmproj) in zip(folders, files, strict=True)
    ]
    lines = "\n".join(json.dumps(asdict(job)) for job in jobs)
    done = subprocess.run(
        [sys.executable, "-c", _CONVERT], input=lines, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    words = [line for line in done.stdout.splitlines() if line.startswith(("refused", "converted"))]
    return files, words
