"""An output that is an input is refused before any work; other files are replaced if told to."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from atp_cpp.batch.output.text_files import TextFileError, TextFiles
from atp_cpp.convert import convert_atp
from atp_cpp.errors import ModelError
from atp_cpp.models.files import DEMO_ATP, DEMO_DIR
from atp_cpp.sidecar.sidecar import AtpSidecar


@pytest.fixture
def files(tiny_files):
    return ["-m", tiny_files[0], "--mmproj", tiny_files[1], "-c", 512, "-t", 1, "-n", 2]


def refused(cli, *arguments):
    ran = cli(*arguments)
    assert ran.code == 2
    return ran.err


def test_explain_never_replaces_its_image(cli, scene, files, tmp_path):
    before = scene.read_bytes()
    same = tmp_path / "same.png"
    os.symlink(scene, same)
    hard = tmp_path / "hard.png"
    os.link(scene, hard)
    policy = ["--policy", "grid"]
    for out in (scene, same, hard, tmp_path / "." / scene.name):
        for force in ([], ["--force"]):
            said = refused(cli, "explain", scene, "--out", out, *policy, *files, *force)
            assert "is an input" in said
    assert scene.read_bytes() == before


def test_explain_replaces_another_file_if_told_to(cli, scene, files, tmp_path):
    out = tmp_path / "kept.png"
    Image.new("RGB", (3, 3)).save(out)
    before = out.read_bytes()
    command = ["explain", scene, "--out", out, "--policy", "grid", *files]
    assert "replace it with --force" in refused(cli, *command)
    assert out.read_bytes() == before
    assert cli(*command, "--force").code == 0
    assert out.read_bytes() != before


def test_caption_writes_over_no_input(cli, scene, files, tmp_path):
    jsonl = tmp_path / "in.jsonl"
    jsonl.write_text(json.dumps({"image": str(scene)}) + "\n")
    before = jsonl.read_bytes()
    assert "is an input" in refused(cli, "caption", "--jsonl", jsonl, "--out", jsonl, *files)
    assert "is an input" in refused(cli, "caption", scene, "--out", scene, *files)
    rows = tmp_path / "rows.jsonl"
    for table in (jsonl, rows):
        said = refused(cli, "caption", "--jsonl", jsonl, "--out", rows, "--parquet", table, *files)
        assert "is an input" in said
    other = tmp_path / "other.parquet"
    other.write_text("mine")
    said = refused(cli, "caption", scene, "--out", rows, "--parquet", other, *files)
    assert "--force" in said
    assert (jsonl.read_bytes(), other.read_text(), rows.exists()) == (before, "mine", False)


def test_the_same_command_still_goes_on(cli, scene, files, tmp_path):
    command = ["caption", scene, "--out", tmp_path / "r.jsonl", "--parquet", tmp_path / "r.parquet"]
    for _ in range(2):
        assert cli(*command, *files).code == 0
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 1


def test_a_text_takes_the_place_of_no_list(tmp_path):
    texts = TextFiles("overwrite", [tmp_path / "photos.txt"])
    with pytest.raises(TextFileError, match="an input"):
        texts.wanted(tmp_path / "photos.png")
    assert texts.wanted(tmp_path / "cat.png")


def test_eval_writes_over_no_input(cli, scene, files, tmp_path):
    questions = tmp_path / "q.jsonl"
    row = {"image": scene.name, "question": "what?", "answer": "a", "id": "1"}
    questions.write_text(json.dumps(row) + "\n")
    before = questions.read_bytes()
    files = files[:-2]
    for option in ("--rows", "--out"):
        assert "is an input" in refused(cli, "eval", questions, option, questions, *files)
    out = tmp_path / "table.json"
    out.write_text("{}")
    assert "--force" in refused(cli, "eval", questions, "--out", out, *files)
    assert (questions.read_bytes(), out.read_text()) == (before, "{}")
    for force in (["--force"], []):  # the second time it replaces its own report
        assert cli("eval", questions, "--out", out, "-n", 2, *files, *force).code == 0


def test_a_sidecar_is_not_written_over_its_modules(tmp_path):
    AtpSidecar.read_gguf(DEMO_DIR / DEMO_ATP).save_dir(tmp_path)
    before = np.load(tmp_path / "atp.npz").files
    for name in ("atp.npz", "atp.json"):
        with pytest.raises(ModelError, match="is what the sidecar is made of"):
            convert_atp(tmp_path, tmp_path / name, force=True)
    assert np.load(tmp_path / "atp.npz").files == before
