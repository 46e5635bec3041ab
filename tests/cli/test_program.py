"""The program: streams, rows, exit codes, and what the user sees when something goes wrong."""

import os
import re
import struct

import pytest
from PIL import Image

import atp_cpp
from atp_cpp.cli import arguments as cli_args
from atp_cpp.cli.program import main
from atp_cpp.cli.terminal import one_line
from atp_cpp.errors import StageError
from support.fake_batch_engine import FakeBatchEngine

FIELDS = [
    "custom_id", "image", "sha256", "stamp", "prompt", "caption", "parsed", "finish_reason",
    "status", "error", "n_image_tokens", "n_kept", "tokens_mean", "thresholds", "t_load",
    "t_encode", "t_prefill", "t_decode", "kv_bytes", "model", "mmproj", "atp", "policy",
    "config_hash", "seed",
]  # fmt: skip
FILES = ("-m", "m.gguf", "--mmproj", "p.gguf")


# ---- caption, with a fake engine


def test_one_image_prints_the_caption_alone(cli, fake_engine, scene):
    fake_engine()
    ran = cli("caption", scene, *FILES, "--policy", "fastv:keep=0.25,after=2")
    assert (ran.code, ran.out) == (0, "A red circle.\n")
    assert "16 image tokens, kept 4 after layer 2 (mean over layers 7.0)" in ran.err
    assert "KV cache" in ran.err


def test_several_images_print_a_line_each(cli, fake_engine, scene, tmp_path):
    fake_engine(of=FakeBatchEngine)
    other = tmp_path / "other.png"
    Image.new("RGB", (8, 8)).save(other)
    ran = cli("caption", scene, other, *FILES, "-p", "Two\nlines", "-n", 4)
    assert ran.code == 0
    first, second = ran.out.splitlines()
    assert re.fullmatch(rf"{scene}: 2\d\d\.\d+ USER: <__media__> Two", first)
    assert second == f"{other}: 0.000 USER: <__media__> Two"


def test_arguments_reach_the_engine(cli, fake_engine, scene):
    engine = fake_engine()
    ran = cli(
        "caption", scene, *FILES, "-p", "Why?", "-n", 3, "--temp", 0.5, "--seed", 9, "-c", 256,
        "-t", 2, "-ngl", 0, "-fa", "off", "-ctk", "f32", "-ctv", "q8_0",
        "--policy", "fastv", "--policy", "grid:after=0.5", "--keep", "0.25",
    )  # fmt: skip
    assert ran.code == 0
    (made,) = engine.made
    assert made.options["n_ctx"] == 256
    assert made.options["n_threads"] == 2
    assert made.options["n_gpu_layers"] == 0
    assert [made.options[k] for k in ("flash_attn", "type_k", "type_v")] == ["off", "f32", "q8_0"]
    (call,) = made.calls
    assert "Why?" in call["prompt"]
    assert (call["n_predict"], call["temp"], call["seed"]) == (3, 0.5, 9)
    assert call["plan"] == [(2, "fastv", 0.25, 0), (4, "grid", 0.25, 0)]
    assert made.closed


def test_json_rows_have_the_agreed_fields(cli, fake_engine, scene):
    fake_engine()
    ran = cli("caption", scene, *FILES, "--json", "--policy", "fastv:keep=0.25,after=2")
    (row,) = ran.rows
    assert list(row) == FIELDS
    assert row["caption"] == "A red circle."
    assert (row["status"], row["error"], row["finish_reason"]) == ("ok", "", "stop")
    assert (row["n_image_tokens"], row["n_kept"], row["tokens_mean"]) == (16, [4], 7.0)
    assert (row["model"], row["mmproj"]) == ("m.gguf", "p.gguf")
    assert row["policy"] == "fastv:keep=0.25,after=2"
    assert row["t_load"] > 0
    assert (row["t_encode"], row["t_prefill"], row["t_decode"]) == (1.0, 2.0, 3.0)
    assert row["kv_bytes"] == 4096
    assert (row["atp"], row["thresholds"]) == ("", [])


def test_a_bad_image_among_several_costs_its_row_only(cli, fake_engine, scene, tmp_path):
    fake_engine(of=FakeBatchEngine)
    bad = tmp_path / "bad.jpg"
    bad.touch()
    ran = cli("caption", scene, bad, scene, *FILES)
    assert ran.code == 1
    assert [line.partition(": ")[0] for line in ran.out.splitlines()] == [str(scene)] * 2
    assert f"atp-cpp: error: {bad}: expected an image" in ran.err
    assert "1 of 3 captions failed" in ran.err

    ran = cli("caption", scene, bad, scene, *FILES, "--json")
    assert ran.code == 1
    assert [row["status"] for row in ran.rows] == ["ok", "error", "ok"]
    assert all(list(row) == FIELDS for row in ran.rows)
    assert "0 bytes" in ran.rows[1]["error"]
    assert (ran.rows[1]["caption"], ran.rows[1]["finish_reason"]) == ("", "error")


def test_a_single_bad_image_is_one_line_and_no_model_is_loaded(cli, fake_engine, tmp_path):
    engine = fake_engine()
    ran = cli("caption", tmp_path / "none.png", *FILES)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"atp-cpp: error: {tmp_path}/none.png: no such file; check the path\n"
    assert engine.made == []


def test_an_engine_failure_on_one_image_names_it(cli, fake_engine, scene):
    def start(self, sequence, **draw):
        self.n_started = getattr(self, "n_started", 0) + 1
        if self.n_started == 1:
            raise StageError("the context is too small for the prompt; raise -c")
        return FakeBatchEngine.start(self, sequence, **draw)

    fake_engine(of=FakeBatchEngine, start=start)
    ran = cli("caption", scene, scene, *FILES, "--json")
    assert ran.code == 1
    assert [row["status"] for row in ran.rows] == ["error", "ok"]
    assert f"{scene}: the context is too small" in ran.err
    fake_engine(fail_calls=(0,))
    ran = cli("caption", scene, *FILES)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "expected an image, a folder"),
        (["x.png", "--parquet", "x.parquet"], "--parquet needs the rows of --out"),
        (["x.png", "--retry-failed"], "--retry-failed needs the rows of --out"),
        (["x.png", "--shard", "3/2"], "expected a part from 1 to 2"),
        (["x.png", "--kv-budget", "much"], "expected a size in bytes"),
        (["x.png", "-np", "0"], "expected at least 1, got 0"),
        (["x.png", "--prompt-file", "/nowhere/p.txt"], "/nowhere/p.txt: No such file"),
        (["x.png", "-p", "Why?", "-p", "Why?"], "'Why?' is given twice"),
        (["x.png", "--frobnicate"], "--frobnicate"),
        (["x.png", "-n", "0"], "expected at least 1, got 0"),
        (["x.png", "-n", "many"], "expected a whole number, got 'many'"),
        (["x.png", "-ngl", "-2"], "expected at least -1"),
        (["x.png", "--temp", "-1"], "temp must be 0"),
        (["x.png", "--seed", "4294967296"], "seed must lie in"),
        (["x.png", "--policy", "fast"], "unknown policy 'fast'"),
        (["x.png", "--policy", "fastv:keep=2"], "keep must be above 0"),
        (["x.png", "--policy", "fastv", "--keep", "0"], "keep must be above 0"),
        (["x.png", "--keep", "0.5"], "--keep needs a policy"),
        (["x.png", "--keep", "0.5", "--policy", "none"], "--keep needs a policy"),
    ],
)
def test_usage_errors(cli, fake_engine, arguments, says):
    fake_engine()
    ran = cli("caption", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err


def test_model_errors(cli, fake_engine, scene):
    fake_engine()
    ran = cli("caption", scene, "-m", scene)
    assert ran.code == 2
    assert "mmproj" in ran.err
    ran = cli("caption", scene, scene, *FILES, "--policy", "fastv:after=50")
    assert (ran.code, ran.out) == (2, "")
    assert "this model has 8 layers" in ran.err


def test_hf_brings_model_projector_and_sidecar(cli, fake_engine, scene, monkeypatch):
    asked = []

    def hub_model(name):
        asked.append(name)
        return "hub/m.gguf", "hub/mmproj.gguf", "hub/atp.gguf"

    monkeypatch.setattr(cli_args, "hub_model", hub_model)
    engine = fake_engine()
    ran = cli("caption", scene, "-hf", "somebody/llava:q8_0", "--budget", "0.5")
    assert ran.code == 0
    (made,) = engine.made
    assert asked == ["somebody/llava:q8_0"]
    assert (made.model, made.mmproj, made.atp) == ("hub/m.gguf", "hub/mmproj.gguf", "hub/atp.gguf")
    ran = cli("caption", scene, "-hf", "somebody/llava", "--mmproj", "p.gguf", "--json")
    assert (ran.rows[0]["model"], ran.rows[0]["mmproj"]) == ("hub/m.gguf", "p.gguf")
    ran = cli("caption", scene, "-hf", "somebody/llava", "-m", "m.gguf")
    assert ran.code == 2
    assert "-m and -hf both name a model" in ran.err


def test_an_unforeseen_failure_is_one_line_without_verbose(cli, fake_engine, scene, monkeypatch):
    engine = fake_engine()

    def crash(self, *args, **options):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(engine, "generate", crash, raising=False)
    ran = cli("caption", scene, *FILES)
    assert ran.code == 2
    assert ran.err == "atp-cpp: error: RuntimeError: out of luck; --verbose shows where\n"


def test_verbose_shows_the_traceback(fake_engine, tmp_path, capsys):
    fake_engine()
    assert main(["caption", str(tmp_path / "none.png"), *FILES, "--verbose"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_prints_what_was_done(cli, fake_engine, scene):
    def step(self):
        if self.steps == 15:
            raise KeyboardInterrupt
        return FakeBatchEngine.step(self)

    engine = fake_engine(of=FakeBatchEngine, step=step)
    ran = cli("caption", scene, scene, scene, *FILES, "-np", 1)
    assert ran.code == 130
    assert len(ran.out.splitlines()) == 2
    assert "interrupted; 2 captions complete" in ran.err
    assert engine.made[0].closed
    assert engine.made[0].n_live == 0

    fake_engine(interrupt_at=(0, 1))
    ran = cli("caption", scene, *FILES)
    assert (ran.code, ran.out) == (130, "A\n")

    engine = fake_engine(interrupt_at=(0, 2))
    ran = cli("caption", scene, *FILES, "--json")
    assert ran.code == 130
    (row,) = ran.rows
    assert (row["status"], row["error"]) == ("error", "interrupted")
    assert (row["caption"], row["finish_reason"]) == ("A red", "cancelled")
    assert engine.made[0].closed


def test_interrupt_before_any_word(cli, fake_engine, scene):
    fake_engine(interrupt_at=(0, 0))
    ran = cli("caption", scene, *FILES)
    assert (ran.code, ran.out) == (130, "")


def test_notes_are_said_once_on_stderr(cli, fake_engine, tmp_path):
    fake_engine(of=FakeBatchEngine, info={"chat_template": ""})
    images = []
    for name in ("a.png", "b.png"):
        images.append(tmp_path / name)
        Image.new("RGBA", (8, 8), (255, 0, 0, 10)).save(images[-1])
    ran = cli("caption", *images, *FILES)
    assert ran.code == 0
    assert ran.err.count("over white") == 1
    assert ran.err.count("no chat template") == 1


def test_names_of_any_bytes(cli, fake_engine, tmp_path):
    fake_engine(of=FakeBatchEngine)
    names = ["new\nline.png", "tab\t.png", "汉字.png"]
    if os.name == "posix":
        names.append(os.fsdecode(b"latin\xe9.png"))
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    paths = [tmp_path / name for name in names]
    ran = cli("caption", *paths, *FILES)
    assert ran.code == 0
    assert len(ran.out.splitlines()) == len(paths)
    ran = cli("caption", *paths, *FILES, "--json")
    assert [row["image"] for row in ran.rows] == [str(p) for p in paths]


def test_version_and_help(cli):
    ran = cli("--version")
    assert (ran.code, ran.out) == (0, f"atp-cpp {atp_cpp.__version__}\n")
    for command in ("caption", "explain", "eval", "convert", "inspect"):
        ran = cli(command, "--help")
        assert ran.code == 0
        assert f"atp-cpp {command}" in ran.out
    assert cli().code == 2


def test_one_line():
    assert one_line("a\nb\x1b[31m  c\u202e") == "a b\\x1b[31m c\\u202e"


# ---- inspect, on real files


def test_inspect_a_text_model(cli, tiny_files):
    ran = cli("inspect", tiny_files[0], "-t", 1)
    assert (ran.code, ran.err) == (0, "")
    for line in ("text model", "architecture   llama", "layers         8", "width          128"):
        assert line in ran.out
    assert "legal cuts     after 1-7 layers" in ran.out
    assert "pruning        yes" in ran.out
    assert "chat template  yes" in ran.out

    (row,) = cli("inspect", tiny_files[0], "-t", 1, "--json").rows
    assert row["kind"] == "text model"
    assert row["legal_cuts"] == [1, 2, 3, 4, 5, 6, 7]
    assert row["n_params"] > 0


def test_inspect_a_projector(cli, tiny_files, tiny_mmproj):
    (row,) = cli("inspect", tiny_files[1], "--json").rows
    assert row["kind"] == "vision projector"
    assert (row["width"], row["image_size"], row["patch_size"]) == (128, 112, 14)
    ran = cli("inspect", tiny_mmproj("mlp", n_embd_text=96))
    assert "images         prepared as llama.cpp does" in ran.out
    assert "vision projector" in ran.out
    assert "width          96" in ran.out


@pytest.mark.parametrize("layout", ["mlp", "mlp-cls", "qwen2vl", "qwen3vl", "gemma3"])
def test_inspect_says_the_width_the_engine_will_ask_for(cli, tiny_mmproj, layout):
    (row,) = cli("inspect", tiny_mmproj(layout), "--json").rows
    assert row["width"] == 128
    assert row["n_layer"] == 4


@pytest.mark.parametrize("field", ["key", "n_dims", "type"])
def test_inspect_a_header_of_nonsense(cli, tmp_path, field):
    key = struct.pack("<Q", 1 << 40 if field == "key" else 1) + b"k"
    pair = key + struct.pack("<IB", 99 if field == "type" else 0, 7)
    tensor = struct.pack("<Q", 1) + b"t" + struct.pack("<I", 1 << 30)
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + pair + tensor + bytes(100))
    ran = cli("inspect", path)
    assert (ran.code, ran.out) == (2, "")
    assert "the GGUF header is cut short or damaged" in ran.err


def test_inspect_what_is_no_model(cli, tmp_path, scene, tiny_files):
    for path, says in (
        (scene, "expected a GGUF file, got a file that begins with b'\\x89PNG'"),
        (tmp_path / "none.gguf", "no such file"),
        (tmp_path, "got a directory"),
    ):
        ran = cli("inspect", path)
        assert (ran.code, ran.out) == (2, "")
        assert says in ran.err
        assert ran.err.count("\n") == 1
    for name, end in (("a.gguf", 4), ("b.gguf", 30), ("c.gguf", 3000), ("d.gguf", 100_000)):
        for source in tiny_files:
            cut = tmp_path / name
            cut.write_bytes(source.read_bytes()[:end])
            ran = cli("inspect", cut)
            if source is tiny_files[0] or end < 100_000:
                assert ran.code == 2, (source, end)
                assert "cut short or damaged" in ran.err or "is cut short" in ran.err
