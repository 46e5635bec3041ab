"""Fifty kills at random moments, then a run to the end: the rows of an undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import atp_cpp

N_IMAGES = 400
N_KILLS = 50


@pytest.fixture
def images(tmp_path):
    """Small pictures of noise, and some that cannot be opened."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for k in range(N_IMAGES):
        if k % 40 == 7:
            (folder / f"{k:03d}.png").write_bytes(b"no image")
            continue
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(folder / f"{k:03d}.png")
    return folder


def start(folder, out, model, mmproj):
    """The program; in F32 a caption does not depend on which others run beside it."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "atp_cpp", "caption", folder, "--out", out, "-m", model,
            "--mmproj", mmproj, "-c", "256", "-t", "1", "-n", "6", "-np", "4",
            "-fa", "off", "-ctk", "f32", "-ctv", "f32", "--policy", "fastv:keep=0.25,after=2",
        ],
        env={**os.environ, "PYTHONPATH": str(Path(atp_cpp.__file__).parents[1])},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def rows_of(out):
    """(image, caption, status) of all whole lines; a torn last one is left out."""
    lines = out.read_text("utf-8").split("\n")[:-1] if out.exists() else []
    return [(row["image"], row["caption"], row["status"]) for row in map(json.loads, lines)]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="no SIGKILL here")
def test_killed_fifty_times_nothing_is_lost_and_nothing_twice(images, tmp_path, tiny_files):
    whole = start(images, tmp_path / "whole.jsonl", *tiny_files)
    assert whole.wait(300) == 1  # some images cannot be opened
    whole.stderr.close()
    expected = sorted(rows_of(tmp_path / "whole.jsonl"))
    assert len(expected) == N_IMAGES
    assert len({caption for _, caption, _ in expected}) > N_IMAGES / 2  # they can be told apart

    rng, out, n_seen = random.Random(11), tmp_path / "killed.jsonl", []
    for kill in range(N_KILLS):
        process = start(images, out, *tiny_files)
        wanted = (kill + 1) * N_IMAGES * 0.9 / N_KILLS  # so that the kills spread over the run
        while process.poll() is None and len(rows_of(out)) < wanted:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        process.stderr.close()
        n_seen.append(len(rows_of(out)))
    assert len(set(n_seen)) > N_KILLS / 2
    assert n_seen[-1] < N_IMAGES
    last = start(images, out, *tiny_files)
    assert last.wait(300) in (0, 1)
    last.stderr.close()
    assert sorted(rows_of(out)) == expected
