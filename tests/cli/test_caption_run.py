"""Many images through the program, with an engine that is none: files, resuming, Ctrl-C."""

import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from atp_cpp.batch.output.resume import read_rows
from support.fake_batch_engine import FakeBatchEngine

FILES = ("-m", "m.gguf", "--mmproj", "p.gguf")


@pytest.fixture
def folder(tmp_path):
    """Twelve images of their own grey, and one that is none."""
    path = tmp_path / "images"
    path.mkdir()
    for k in range(12):
        Image.fromarray(np.full((8, 8, 3), 20 * k, np.uint8)).save(path / f"{k:02d}.png")
    (path / "05b.jpg").write_bytes(b"")
    return path


@pytest.fixture
def run(cli, fake_engine, folder, tmp_path, monkeypatch):
    """`run(*arguments) -> Ran` over the folder, with --out; `run.out` is that file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.gguf").write_bytes(b"stands for a projector")

    def run(*arguments, **steer):
        run.engine = fake_engine(of=FakeBatchEngine, **steer)
        return cli("caption", folder, *FILES, "--out", run.out, *arguments)

    run.out = tmp_path / "rows.jsonl"
    run.rows = lambda: [json.loads(line) for line in run.out.read_text().splitlines()]
    return run


def greys(rows):
    """Image name -> the grey that its caption names."""
    return {
        os.path.basename(row["image"]): float(row["caption"].split()[0])
        for row in rows
        if row["status"] == "ok"
    }


EVERY = {f"{k:02d}.png": 20.0 * k for k in range(12)}


@pytest.mark.parametrize("n", [0, 3])
def test_threads_of_the_encoder_reach_the_engine(run, n):
    run(*(["--threads-encode", n] if n else []))
    (made,) = run.engine.made
    assert made.options["n_threads_encode"] == n


def test_each_image_has_its_row_and_its_own_caption(run):
    ran = run()
    assert (ran.code, ran.out) == (1, "")
    rows = run.rows()
    assert len(rows) == 13
    assert greys(rows) == EVERY
    (failed,) = (row for row in rows if row["status"] == "error")
    assert failed["image"].endswith("05b.jpg")
    assert "12 captions, " in ran.err
    assert "; 1 failed" in ran.err
    assert all(row["config_hash"] and row["sha256"] for row in rows if row["status"] == "ok")


def test_the_same_command_again_does_nothing(run):
    run()
    before = run.out.read_bytes()
    ran = run()
    assert ran.code == 1, "one of them had failed"
    assert "13 done before, 1 of them failed (--retry-failed" in ran.err
    assert run.out.read_bytes() == before
    assert run.engine.made[0].n_encoded == 0


def test_done_before_without_a_failure_is_a_success(run, folder):
    (folder / "05b.jpg").unlink()
    run()
    ran = run()
    assert ran.code == 0
    assert "12 done before" in ran.err and "of them failed" not in ran.err


def test_a_run_that_nobody_watches_says_how_far_it_is(run, monkeypatch):
    monkeypatch.setattr("atp_cpp.cli.terminal.PROGRESS_EVERY", 0.0)
    lines = [line for line in run().err.splitlines() if " of 13 done, " in line]
    assert len(lines) == 13
    assert "13 of 13 done, " in lines[-1] and " an hour, " in lines[-1] and "1 failed" in lines[-1]


def test_a_run_of_less_than_a_minute_says_nothing_on_the_way(run):
    assert " of 13 done" not in run().err


def test_failed_ones_are_tried_again_when_asked(run, folder):
    run()
    Image.fromarray(np.full((8, 8, 3), 111, np.uint8)).save(folder / "05b.jpg")
    ran = run("--retry-failed")
    assert ran.code == 0
    assert len(run.rows()) == 14
    assert greys(row.as_dict() for row in read_rows(run.out)) == {**EVERY, "05b.jpg": 111.0}


def test_other_settings_are_other_rows(run):
    run()
    run("-n", 3, "-p", "Why?")
    assert len(run.rows()) == 26


def test_several_prompts_encode_an_image_once(run, folder):
    (folder / "05b.jpg").unlink()
    ran = run("-p", "One?", "-p", "Two?")
    assert ran.code == 0
    assert {(r["image"], r["prompt"]) for r in run.rows()} == {
        (str(folder / name), prompt) for name in EVERY for prompt in ("One?", "Two?")
    }
    assert run.engine.made[0].n_encoded == 12


def test_embeddings_are_kept_for_the_next_run(run, tmp_path):
    cache = ("--embedding-cache", tmp_path / "cache")
    run(*cache)
    assert run.engine.made[0].n_encoded == 12
    run(*cache, "-p", "Why?")
    assert run.engine.made[0].n_encoded == 0
    assert greys(run.rows()[13:]) == EVERY


def test_texts_beside_the_images(run, folder):
    (folder / "03.txt").write_text("mine\n")
    ran = run("--txt", "--existing", "append")
    assert ran.code == 1
    texts = {path.stem: path.read_text() for path in folder.glob("*.txt")}
    assert set(texts) == {name.removesuffix(".png") for name in EVERY}
    assert texts["03"].startswith("mine\n60.000 ")
    assert texts["04"].startswith("80.000 ")
    run("--txt", "--existing", "append")
    assert (folder / "03.txt").read_text() == texts["03"]


def test_rows_on_stdout_too(run):
    ran = run("--json")
    assert {row["custom_id"] for row in ran.rows} == {row["custom_id"] for row in run.rows()}


def test_shards_share_the_work(run):
    run("--shard", "1/2")
    first = greys(run.rows())
    run("--shard", "2/2")
    assert 0 < len(first) < 12
    assert greys(run.rows()) == EVERY


def test_stop_at_the_first_error(run):
    ran = run("--on-error", "stop", "-np", 1)
    assert ran.code == 1
    assert [row["status"] for row in run.rows()].count("error") == 1
    assert len(run.rows()) < 13


def test_no_resume_leaves_a_file_alone(run):
    run()
    before = run.out.read_bytes()
    ran = run("--no-resume")
    assert ran.code == 2
    assert "holds rows already" in ran.err
    assert run.out.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_those_under_way_and_the_next_run_goes_on(run, number):
    def step(self):
        if self.steps == 6:
            os.kill(os.getpid(), number)
        return FakeBatchEngine.step(self)

    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    ran = run("-np", 3, step=step)
    assert ran.code == 130
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    good = greys(run.rows())
    assert 3 <= len(good) < 12
    assert f"rows so far are in {run.out}" in ran.err
    assert run().code == 1
    assert greys(run.rows()) == EVERY
    assert len(run.rows()) == 13


def test_a_second_ctrl_c_gives_up_and_nothing_is_lost(run):
    def step(self):
        if self.steps == 8:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return FakeBatchEngine.step(self)

    ran = run("-np", 3, step=step)
    assert ran.code == 130
    assert len(run.rows()) == 3  # what had ended before
    assert run.engine.made[0].n_live == 0
    run()
    assert greys(run.rows()) == EVERY


def test_a_full_disk_ends_the_run_and_says_how_to_go_on(run, monkeypatch):
    from atp_cpp.storage import jsonl

    real, written = os.write, []

    def write(descriptor, data):
        if data.startswith(b'{"custom_id"'):
            written.append(data)
            if len(written) == 5:
                raise OSError(28, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(jsonl.os, "write", write)
    ran = run()
    assert ran.code == 2
    assert "No space left" in ran.err
    assert "same command again" in ran.err
    assert len(run.rows()) == 4
    monkeypatch.setattr(jsonl.os, "write", real)
    run()
    assert greys(run.rows()) == EVERY
