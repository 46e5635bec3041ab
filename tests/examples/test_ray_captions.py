"""examples/ray_captions.py: two actors of Ray Data, one of them killed, and every row is there."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from atp_cpp import CaptionBatch
from support.drawn_pictures import drawn

pytestmark = pytest.mark.ray

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_captions.py"
N, N_DRAWN = 200, 50  # images, and pictures among them


@pytest.fixture
def folder(tmp_path):
    """200 images; number i is picture i % 50."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(N_DRAWN):
        drawn(i)[0].save(folder / f"{i:03}.png")
    for i in range(N_DRAWN, N):
        shutil.copy(folder / f"{i % N_DRAWN:03}.png", folder / f"{i:03}.png")
    return folder


@pytest.fixture
def environment():
    """Ray's files in a folder of a short name, which goes afterwards; no login for its parts."""
    short = tempfile.mkdtemp(prefix="ray-")
    path = os.pathsep.join(p for p in sys.path if p)
    yield os.environ | {"RAY_TMPDIR": short, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": path}
    shutil.rmtree(short, ignore_errors=True)


def test_nothing_is_lost_when_an_actor_is_killed(folder, environment, tmp_path):
    out, parquet = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    ran = subprocess.run(
        [
            sys.executable, EXAMPLE, folder, "--kill-one", "--actors", "2",
            "--out", out, "--parquet", parquet,
        ],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "killed actor" in ran.stderr
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert sorted(row["custom_id"] for row in rows) == [f"{i:03}.png" for i in range(N)]
    assert {row["status"] for row in rows} == {"ok"}
    assert len({row["pid"] for row in rows}) == 3, "two actors, and one in the killed one's place"

    caption = CaptionBatch(n_threads=2, kv_budget="256M")
    expected = caption({"image": [str(folder / f"{i:03}.png") for i in range(N_DRAWN)]})["caption"]
    caption.close()
    assert len(set(expected)) > N_DRAWN // 2, "the pictures are told apart"
    for row in rows:
        assert row["caption"] == expected[int(row["custom_id"][:3]) % N_DRAWN]

    import pyarrow.parquet as pq

    assert pq.read_table(parquet).to_pylist() == rows
