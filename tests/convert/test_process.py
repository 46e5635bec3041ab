"""``atp-cpp convert SOURCE`` as a process: signals, full disks, other disks, two files or none."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

import atp_cpp
from atp_cpp import _core as core
from support.convert_many import refuse_many
from support.tiny_llava_hf import write_tiny_llava

pytestmark = pytest.mark.torch

NAMES = ["mmproj-tiny-f16.gguf", "tiny-f16.gguf"]
WIDE = 200_000  # of the large model's feed-forward layers: 5 * 3 * 32 * WIDE weights


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_llava(tmp_path_factory.mktemp("hf") / "tiny")


@pytest.fixture(scope="module")
def large(tiny, tmp_path_factory):
    """The tiny model with wide layers, 384 MB in F32, of zeros that take no space."""
    folder = tmp_path_factory.mktemp("hf") / "tiny"
    folder.mkdir()
    for path in tiny.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = WIDE
    (folder / "config.json").write_text(json.dumps(config))
    header, _ = read_header(folder / "model.safetensors")
    header.pop("__metadata__", None)
    end = 0
    for name, entry in header.items():
        if "language_model" in name and ".mlp." in name:
            entry["shape"] = [WIDE if n == 64 else n for n in entry["shape"]]
        n_bytes = 4
        for n in entry["shape"]:
            n_bytes *= n
        entry["data_offsets"] = [end, end + n_bytes]
        end += n_bytes
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return folder


def read_header(path):
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + n]), 8 + n


def start(*arguments, limit=None):
    """The program; no file may grow beyond `limit` bytes, in its children neither."""

    def prepare():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    mark = uuid.uuid4().hex
    path = str(Path(atp_cpp.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "atp_cpp", "convert", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "ATP_TEST_MARK": mark},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepare,
    )  # fmt: skip
    process.mark = mark.encode()
    return process


def run(*arguments, **options):
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err
    return process.returncode, out, err


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def wait_until(happened):
    for _ in range(1200):
        if happened():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within a minute")


def size_of_parts(out):
    """Bytes of tensors written so far (a head alone is smaller)."""
    parts = [path for path in out.rglob("tiny-f16.gguf") if ".part" in str(path)]
    with_sizes = [path.stat().st_blocks * 512 for path in parts if path.exists()]
    return sum(with_sizes)


def alive(process):
    """The numbers of the program's processes that live, its worker's among them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it ended, or is another user's
            if process.mark in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def loads(folder):
    for name in NAMES:
        core.check_loadable(str(folder / name))


def test_a_run_a_dry_run_and_force(tiny, tmp_path):
    """The dry run says the very sizes that come, and leaves nothing; --force replaces."""
    out = tmp_path / "deep" / "out"
    code, stdout, dry = run(tiny, "--outfile-dir", out, "--dry-run")
    assert code == 0 and "dry run, nothing was written" in dry
    assert list(tmp_path.iterdir()) == []
    code, again, err = run(tiny, "--outfile-dir", out)
    assert (code, again) == (0, stdout)
    assert files_below(tmp_path) == sorted(f"deep/out/{name}" for name in NAMES)
    sizes = [line for line in dry.splitlines() if line.endswith("bytes")]
    assert sizes == [line for line in err.splitlines() if line.endswith("bytes")]
    for name, what in zip(NAMES, ("vision projector", "text model"), strict=True):
        assert f"{what}: {(out / name).stat().st_size} bytes" in dry
    loads(out)
    whole = {name: (out / name).read_bytes() for name in NAMES}
    (out / NAMES[0]).write_bytes(b"mine")
    (out / NAMES[1]).unlink()
    code, stdout, err = run(tiny, "--outfile-dir", out)
    assert (code, stdout) == (2, "")
    assert len(err.splitlines()) == 1 and "is there already" in err and "--force" in err
    assert (out / NAMES[0]).read_bytes() == b"mine" and len(files_below(out)) == 1
    assert run(tiny, "--outfile-dir", out, "--force")[0] == 0
    assert {name: (out / name).read_bytes() for name in NAMES} == whole


def test_interrupted_while_writing(large, tmp_path):
    out = tmp_path / "out"
    process = start(large, "--outfile-dir", out)
    wait_until(lambda: size_of_parts(out) > 5_000_000 or process.poll() is not None)
    assert len(alive(process)) == 2
    process.send_signal(signal.SIGINT)
    stdout, err = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert err == "atp-cpp: interrupted\n"
    assert list(tmp_path.iterdir()) == []
    assert alive(process) == []


def test_killed_while_writing_then_run_again(large, tiny, tmp_path):
    out = tmp_path / "out"
    process = start(large, "--outfile-dir", out)
    wait_until(lambda: size_of_parts(out) > 5_000_000 or process.poll() is not None)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    wait_until(lambda: alive(process) == [])  # the worker ends with its parent
    left = files_below(out)
    assert left and not any(name in left for name in NAMES)
    assert run(tiny, "--outfile-dir", out)[0] == 0
    assert files_below(out) == NAMES and not list(out.glob("*.part"))
    loads(out)


@pytest.mark.parametrize("options", [[], ["--outtype", "q4_k_m"]])
def test_the_disk_fills_up_while_writing(large, tmp_path, options):
    """A limit to the size of files stands for it: the same call fails in the same place."""
    out = tmp_path / "out"
    code, stdout, err = run(large, "--outfile-dir", out, *options, limit=20_000_000)
    assert (code, stdout) == (2, "")
    assert err == (
        f"atp-cpp: error: {out}: no space for the output (File too large); free some, or name "
        "another --outfile-dir\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second file system here")
def test_another_file_system(tiny, tmp_path):
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        assert os.stat(folder).st_dev != tiny.stat().st_dev
        assert run(tiny, "--outfile-dir", folder)[0] == 0
        assert files_below(Path(folder)) == NAMES
        loads(Path(folder))


def changed(tiny, folder, *, config=None, without=None):
    """The checkpoint with another word in its config.json, or without a tensor."""
    from safetensors.numpy import load_file, save_file

    folder.mkdir()
    for path in tiny.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if config is not None:
        text = (folder / "config.json").read_text()
        assert config[0] in text
        (folder / "config.json").write_text(text.replace(*config, 1))
    if without is not None:
        tensors = load_file(folder / "model.safetensors")
        name = next(name for name in tensors if without in name)
        del tensors[name]
        save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (("LlavaForCond", "FooForCond"), "FooForConditionalGeneration"),
        (('"intermediate_size": 64', '"intermediate_size": 66'), "has wrong shape"),
    ],
)
def test_a_checkpoint_that_makes_no_model(tiny, tmp_path, config, reason):
    folder = changed(tiny, tmp_path / "tiny", config=config)
    code, stdout, err = run(folder, "--outfile-dir", tmp_path / "out")
    assert (code, stdout) == (2, "")
    assert len(err.splitlines()) == 1 and err.startswith("atp-cpp: error: ") and reason in err
    assert not (tmp_path / "out").exists()


def test_no_missing_tensor_goes_unnoticed(tiny, tmp_path):
    """Neither those that llama.cpp asks for, nor those without which it computes something else."""
    reasons = {
        "language_model.model.layers.2.mlp.down_proj": "'blk.2.ffn_down.weight' not found",
        "layers.1.mlp.fc1.weight": "lacks 1 of the vision encoder's 37 tensors",
        "layers.1.mlp.fc1.bias": "lacks 1 of the vision encoder's 37 tensors",
        "class_embedding": "embeddings.class_embedding for one",
        "linear_2.weight": "the checkpoint has no multi_modal_projector.linear_2.weight",
        "lm_head": "the checkpoint has no lm_head.weight",
    }
    folders = [changed(tiny, tmp_path / str(i), without=n) for i, n in enumerate(reasons)]
    messages = refuse_many(folders)
    assert len(messages) == len(reasons)
    for message, reason in zip(messages, reasons.values(), strict=True):
        assert reason in message, message
