"""``atp-cpp convert`` and ``inspect`` on sidecars and on checkpoints."""

import shutil
import sys

import numpy as np
import pytest

from atp_cpp import ConvertError, convert
from atp_cpp import _core as core
from atp_cpp.sidecar.sidecar import AtpSidecar, fingerprint_from_gguf
from support.checkpoint_files import LFS_POINTER, PARTS, write_checkpoint
from support.sidecar_files import example


@pytest.fixture
def trained(tmp_path):
    """A folder as training leaves it."""
    return example().save_dir(tmp_path / "trained")


def files_of(folder):
    return sorted(p.name for p in folder.iterdir())


def test_convert_writes_what_was_trained(cli, trained, tmp_path):
    out = tmp_path / "out.gguf"
    ran = cli("convert", "--atp", trained, "--outfile", out)
    assert (ran.code, ran.out) == (0, f"{out}\n")
    assert f"{out.stat().st_size} bytes; give it with --atp" in ran.err
    assert AtpSidecar.read_gguf(out) == example()


def test_where_the_file_goes(cli, trained, tmp_path):
    assert cli("convert", "--atp", trained).out == f"{trained / 'atp-tiny-f32.gguf'}\n"
    folder = tmp_path / "files"
    folder.mkdir()
    done = convert.convert_atp(trained, folder)
    assert done.path == folder / "atp-tiny-f32.gguf"
    assert done.size_bytes == done.path.stat().st_size
    assert done.sidecar == example()


def test_a_file_that_is_there_stays(cli, trained, tmp_path):
    out = tmp_path / "out.gguf"
    out.write_bytes(b"mine")
    ran = cli("convert", "--atp", trained, "--outfile", out)
    assert (ran.code, ran.out) == (2, "")
    assert "is there already; name another file or replace it with --force" in ran.err
    assert out.read_bytes() == b"mine"
    assert cli("convert", "--atp", trained, "--outfile", out, "--force").code == 0
    assert AtpSidecar.read_gguf(out) == example()


def test_dry_run_says_what_would_be_written_and_writes_nothing(cli, trained, tmp_path):
    out = tmp_path / "out.gguf"
    ran = cli("convert", "--atp", trained, "--outfile", out, "--dry-run")
    assert ran.code == 0
    assert "dry run, nothing was written" in ran.err
    assert f"{out}: ATP sidecar (ATP for tiny)" in ran.out
    assert files_of(tmp_path) == ["trained"]
    assert files_of(trained) == ["atp.json", "atp.npz"]
    cli("convert", "--atp", trained, "--outfile", out)
    assert f"({out.stat().st_size} bytes with the header)" in ran.out
    assert "is there already" in cli("convert", "--atp", trained, "--outfile", out, "--dry-run").err


def test_convert_names_what_is_wrong(cli, trained, tmp_path):
    ran = cli("convert", "--atp", tmp_path / "none")
    assert (ran.code, ran.out) == (2, "")
    assert "atp.json: no such file; expected a folder with atp.json" in ran.err
    assert cli("convert").code == 2
    spoiled = example().tensors | {"blk.0.atp_proj.bias": np.zeros(7, np.float32)}
    np.savez(trained / "atp.npz", **spoiled)
    ran = cli("convert", "--atp", trained)
    assert ran.code == 2
    assert "blk.0.atp_proj.bias must be the shape (5,), got (7,)" in ran.err
    assert files_of(trained) == ["atp.json", "atp.npz"]


def test_convert_without_the_gguf_package(cli, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    ran = cli("convert", "--atp", trained)
    assert ran.code == 2
    assert (
        'needs the gguf package, which is not installed; pip install "atp_cpp[convert]"' in ran.err
    )
    assert files_of(trained) == ["atp.json", "atp.npz"]


# ---- checkpoints: what is refused needs neither PyTorch nor transformers


def refused(ran):
    """The one line, without the program's name; exit code 2 and nothing on stdout."""
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1 and ran.err.startswith("atp-cpp: error: ")
    return ran.err.removeprefix("atp-cpp: error: ")


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (shutil.rmtree, "no folder"),
        (lambda hf: (hf / "config.json").unlink(), "has no config.json"),
        (lambda hf: (hf / "config.json").write_text("{"), "not JSON"),
        (lambda hf: (hf / PARTS[1]).unlink(), f"missing {PARTS[1]} (1 of 2 weight files"),
        (lambda hf: cut(hf / PARTS[0]), f"{PARTS[0]} is cut off: expected "),
        (lambda hf: (hf / PARTS[0]).write_bytes(LFS_POINTER), "run `git lfs pull`"),
        (lambda hf: [path.unlink() for path in hf.iterdir()], "is empty"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--force"]])
def test_a_checkpoint_that_is_not_whole(cli, tmp_path, spoil, reason, options):
    hf = write_checkpoint(tmp_path / "hf", sharded=True)
    spoil(hf)
    ran = cli("convert", hf, "--outfile-dir", tmp_path / "out", *options)
    assert reason in refused(ran)
    assert not (tmp_path / "out").exists()


def test_outputs_that_are_there(cli, tmp_path):
    hf = write_checkpoint(tmp_path / "hf")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mmproj-hf-f16.gguf").write_bytes(b"mine")
    for options in ([], ["--dry-run"]):
        message = refused(cli("convert", hf, "--outfile-dir", out, *options))
        assert f"{out / 'mmproj-hf-f16.gguf'} is there already; " in message
        assert "--force" in message
    assert files_of(out) == ["mmproj-hf-f16.gguf"]
    message = refused(cli("convert", hf, "--outfile-dir", hf / "config.json"))
    assert "config.json is no folder; expected one for --outfile-dir" in message


def test_options_that_do_not_go_together(cli, tmp_path):
    hf = write_checkpoint(tmp_path / "hf")
    assert "expected --outfile-dir" in refused(cli("convert", hf))
    both = cli("convert", hf, "--outfile-dir", tmp_path, "--outfile", "x.gguf")
    assert "--outfile is for --atp alone" in refused(both)
    revision = cli("convert", hf, "--outfile-dir", tmp_path, "--revision", "main")
    assert "which has no revisions" in refused(revision)
    for option in (("--model-name", "x"), ("--outtype", "auto"), ("--mmproj-outtype", "f32")):
        message = refused(cli("convert", "--atp", tmp_path, *option))
        assert message.startswith(f"{option[0]} is for SOURCE")
    assert "--revision is for SOURCE" in refused(cli("convert", "--atp", tmp_path, "--revision", 1))
    ran = cli("convert", hf, "--outfile-dir", tmp_path, "--outtype", "q9")
    assert ran.code == 2 and "invalid choice: 'q9'" in ran.err


def test_the_hub_by_the_command(cli, hub, tmp_path, monkeypatch):
    """What it refuses, and an interrupted download that goes on."""
    out = ["--outfile-dir", tmp_path / "out"]
    assert "no such repository" in refused(cli("convert", "org/none", *out))
    assert "has no revision v9" in refused(cli("convert", "org/tiny", "--revision", "v9", *out))
    hub.gated = True
    assert "is gated and no token is set" in refused(cli("convert", "org/tiny", *out))
    hub.gated = False
    hub.cuts[PARTS[1]] = [70_000] + [0] * 20
    # PyTorch is not here to look at the headers before
    monkeypatch.setattr("atp_cpp.convert.run._plan", lambda job, _: dict.fromkeys(
        (job.text_out, job.mmproj_out), 0))  # fmt: skip
    ran = cli("convert", "org/tiny", *out)
    # the part whose header is read first: nothing was downloaded yet
    assert f"the connection to {hub.url} failed (" in ran.err and "run again, or" in ran.err
    assert (ran.code, ran.out) == (2, "") and not (tmp_path / "out").exists()
    hub.cuts.clear()
    monkeypatch.setattr("atp_cpp.hub.checkpoint.http_get", interrupt)
    ran = cli("convert", "org/tiny", *out)
    assert (ran.code, ran.out) == (130, "") and ran.err.endswith("atp-cpp: interrupted\n")


def test_a_repository_of_torch_files_is_refused_first(cli, hub, tmp_path, monkeypatch):
    for name in [name for name in hub.files if "safetensors" in name]:
        del hub.files[name]
    hub.files |= {"pytorch_model.bin": b"x"}
    hub.large |= {"pytorch_model.bin"}
    out = tmp_path / "out"
    out.mkdir()
    (out / "tiny-f16.gguf").write_bytes(b"mine")
    assert "is there already" in refused(cli("convert", "org/tiny", "--outfile-dir", out))
    monkeypatch.setattr("atp_cpp.convert.child.find_spec", lambda name: None)
    ran = cli("convert", "org/tiny", "--outfile-dir", tmp_path / "other")
    assert "converting needs torch, " in refused(ran)
    hub.files["config.json"] = b'{"vocab_size": 1e99}'
    hub.commit = "f" * 40
    assert "vocab_size is" in refused(cli("convert", "org/tiny", "--outfile-dir", tmp_path / "o"))
    assert hub.gets("pytorch_model.bin") == []


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_packages_that_conversion_needs(cli, tmp_path, monkeypatch):
    from atp_cpp.convert import child

    hf = write_checkpoint(tmp_path / "hf")
    monkeypatch.setattr(child, "find_spec", lambda name: None if name == "torch" else True)
    message = refused(cli("convert", hf, "--outfile-dir", tmp_path / "out"))
    assert "converting needs torch: pip install" in message and "atp_cpp[convert]" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", "line\nbreak", "bell\a", "\udcff"])
def test_names_that_files_cannot_have(cli, tmp_path, name):
    hf = write_checkpoint(tmp_path / "hf")
    ran = cli("convert", hf, "--outfile-dir", tmp_path / "out", "--model-name", name)
    assert "model name: expected part of a file name, got " in refused(ran)


def test_the_folders_name_cannot_be_a_files(cli, tmp_path):
    hf = write_checkpoint(tmp_path / "line\nbreak")
    message = refused(cli("convert", hf, "--outfile-dir", tmp_path / "out"))
    assert "give another (--model-name)" in message


@pytest.mark.parametrize("which", ["source", "outfile_dir", "atp"])
def test_paths_that_are_not_utf_8(tmp_path, which):
    paths = {"source": tmp_path, "outfile_dir": tmp_path} | {which: tmp_path / "s\udcff"}
    with pytest.raises(ConvertError, match=r"s\\udcff': expected a path in UTF-8"):
        convert.convert_hf(**paths)
    assert files_of(tmp_path) == []


# ---- inspect


def test_inspect_names_each_cut(cli, tmp_path):
    """Each has a share of its own, so none hides in a range."""
    path = example(cuts=(1, 2, 3), kept=(0.7, 0.5, 0.1)).write_gguf(tmp_path / "atp.gguf")
    assert "after 1, 2, 3 layers" in cli("inspect", path).out


def test_inspect_a_sidecar(cli, tmp_path):
    path = example().write_gguf(tmp_path / "atp.gguf")
    ran = cli("inspect", path)
    assert (ran.code, ran.err) == (0, "")
    for line in (
        f"{path}: ATP sidecar (ATP for tiny)",
        "for            tiny: llama, 4 layers of width 64, 4 heads",
        "fingerprint    " + "0123456789abcdef" * 4,
        "cuts           after 1, 3 layers",
        "kept           70.0%, 10.0% of the image tokens; 62.5% over all layers (trained for "
        "30.0%)",
        "trained        thresholds; grid 4x6; nothing, this is noise; 画像も",
        "scores         avg, relative, rows_visible; rule union",
        "rates          1/4, 1/9, 1/16, 1/36, 1/64, 1/144; lambda 3",
        "head           2 x 8 -> 5 silu -> 2 thresholds",
        f"tensors        12, f32 ({path.stat().st_size} bytes with the header)",
        "    blk.0.atp_proj.weight        [5, 16]",
        "give it with --atp, beside its model in -m",
    ):
        assert f"{line}\n" in ran.out
    (row,) = cli("inspect", path, "--json").rows
    assert row["kind"] == "ATP sidecar"
    assert row["cuts"] == [1, 3]
    assert row["tensors"]["blk.2.atp_theta_s.weight"] == [1, 5]
    assert (row["model"], row["fits"], row["why_not"]) == ("", None, "")


def test_inspect_says_whether_a_pair_fits(cli, tmp_path, tiny_files, tiny_model):
    model = tiny_files[0]
    own = {"n_layer": 8, "n_embd": 128, "fingerprint": fingerprint_from_gguf(model)}
    path = example(**own).write_gguf(tmp_path / "atp.gguf")
    ran = cli("inspect", path, "-m", model, "-t", 1)
    assert ran.code == 0
    assert f"fits           {model}: yes\n" in ran.out
    other = tiny_model("llama", seed=2)
    ran = cli("inspect", path, "-m", other, "-t", 1)
    assert ran.code == 0
    assert (
        f"fits           {other}: no: the sidecar is for the fingerprint {own['fingerprint']}"
        in ran.out
    )
    (row,) = cli("inspect", path, "-m", other, "-t", 1, "--json").rows
    assert row["fits"] is False and row["why_not"].startswith("the sidecar is for the fingerprint")


def test_inspect_what_is_no_sidecar(cli, tmp_path, tiny_files):
    path = example().write_gguf(tmp_path / "atp.gguf")
    ran = cli("inspect", tiny_files[0], "-m", tiny_files[0])
    assert ran.code == 2 and "is a text model; -m is for comparing a projector or a" in ran.err
    ran = cli("inspect", path, "-m", tmp_path / "none.gguf")
    assert ran.code == 2 and "no such file" in ran.err
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\3\0\0\0\0\0\0\0atp", b"\3\0\0\0\0\0\0\0xyz"))
    ran = cli("inspect", path)
    assert ran.code == 2 and "adapter.type must be 'atp', got 'xyz'" in ran.err
    with pytest.raises(core.ModelError, match=r"adapter.type must be 'atp'"):
        core.load_sidecar(str(path))
