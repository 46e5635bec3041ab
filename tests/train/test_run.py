"""Training on a tiny random LLaVA-1.5: runs go on exactly and change only what they should."""

import csv
import json
import os
import signal
import sys
import types

import numpy as np
import pytest

from atp_cpp.cli.program import main
from atp_cpp.errors import AtpError, ModelError
from support.tiny_llava_hf import DEMO_HF

pytestmark = pytest.mark.torch


def losses(rows):
    names = ("loss", "loss_answers", "mean_tokens", "grad_norm", "lr_heads", "watch_loss")
    return [tuple(row.values.get(name) for name in names) for row in rows]


@pytest.mark.parametrize("mode", ["thresholds", "full", "lora"])
def test_an_interrupted_run_goes_on_exactly(trainer, tmp_path, mode):
    whole = trainer(out=tmp_path / "a", mode=mode, steps=5)
    expected = losses(whole.steps())
    first = trainer(out=tmp_path / "b", mode=mode, steps=5)
    rows = []
    for row in first.steps():
        rows.append(row)
        if row.step == 2:
            break
    first.save()
    second = trainer(out=tmp_path / "b", mode=mode, steps=5, resume=True)
    assert second.step == 2 and not second.changed
    rows += second.steps()
    assert losses(rows) == expected
    whole.finish()
    second.finish()
    a, b = np.load(tmp_path / "a" / "atp.npz"), np.load(tmp_path / "b" / "atp.npz")
    assert all((a[name] == b[name]).all() for name in a.files)
    with (tmp_path / "b" / "curve.csv").open() as stream:
        curve = list(csv.DictReader(stream))
    assert [row["step"] for row in curve] == list("12345")
    assert [bool(row["watch_accuracy"]) for row in curve] == [False, True, False, True, False]


def test_the_command_trains_and_writes_a_sidecar(tiny_llava, llava_json, tmp_path, capsys):
    out = tmp_path / "out"
    command = [
        "train", "-m", str(tiny_llava), "--data", str(llava_json), "--out", str(out), "--mode",
        "thresholds", "--cuts", "2", "--steps", "2", "--images-per-batch", "2", "--device", "cpu",
    ]  # fmt: skip
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n"
    assert "modules after 2 layers" in captured.err and "held-out accuracy" in captured.err
    assert f"next: atp-cpp convert --atp {out}" in captured.err
    meta = json.loads((out / "atp.json").read_text())
    assert meta["cuts"] == [2] and meta["base_name"] == "tiny-llava"
    assert meta["data"] == "llava.json, 5 images"
    assert main(command) == 2
    assert "--resume goes on with it" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0  # nothing left to do: writes the folder again
    assert json.loads((out / "atp.json").read_text()) == meta


def test_images_that_cannot_be_read_are_named_and_the_run_goes_on(
    tiny_llava, llava_json, tmp_path, capsys
):
    entries = json.loads(llava_json.read_text())
    entries.append({**entries[0], "id": "gone", "image": "gone.png"})
    data, out = tmp_path / "more.json", tmp_path / "out"
    data.write_text(json.dumps(entries))
    command = [
        "train", "-m", str(tiny_llava), "--data", str(data), "--image-dir", str(llava_json.parent),
        "--watch", str(llava_json), "--out", str(out), "--mode", "thresholds", "--steps", "2",
        "--device", "cpu",
    ]  # fmt: skip
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "gone.png: no such file" in said
    assert "times an image could not be read and was left out" in said
    assert (out / "atp.json").exists()


def test_the_clock_can_end_a_run(trainer):
    run = trainer(mode="thresholds", steps=None, minutes=0.08)
    rows = list(run.steps())
    assert rows and run.seconds >= 0.08 * 60
    rates = [row.values["lr_heads"] for row in rows]
    assert rates[-1] < max(rates)
    assert run.n_steps is None and run.progress == 1


def test_without_a_limit_it_is_one_pass(trainer, tmp_path):
    run = trainer(mode="thresholds", steps=None)
    assert run.n_steps == 3  # five images, one is watched, two a step
    assert (
        trainer(mode="thresholds", steps=None, out=tmp_path / "b", images_per_batch=3).n_steps == 2
    )


def test_checkpoints_are_written_on_the_way(trainer):
    run = trainer(mode="thresholds", save_minutes=0)
    steps = run.steps()
    next(steps)
    assert run.options.out.joinpath("checkpoint.pt").exists()
    steps.close()
    again = trainer(mode="thresholds", save_minutes=0, resume=True)
    assert again.step == 1
    assert [row.step for row in again.steps()] == [2, 3]


def test_tensorboard_gets_the_curve_where_it_is_installed(trainer, monkeypatch):
    rows, closed = [], []

    class Writer:
        def __init__(self, folder):
            assert folder.endswith("tensorboard")

        def add_scalar(self, name, value, step):
            rows.append((name, value, step))

        def close(self):
            closed.append(True)

    board = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    steps = list(trainer(mode="thresholds").steps())
    assert rows == [(n, v, row.step) for row in steps for n, v in row.values.items()]
    assert closed == [True]


def test_a_run_that_crashed_after_its_checkpoint_repeats_the_steps(trainer):
    run = trainer(mode="thresholds", steps=4)
    rows = run.steps()
    next(rows)
    run.save()
    expected = [next(rows).values["loss"] for _ in range(2)]
    rows.close()  # nothing saved of these two
    again = trainer(mode="thresholds", steps=4, resume=True)
    assert [row.values["loss"] for row in again.steps()][:2] == expected
    lines = (run.options.out / "curve.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "1", "2", "3", "4"]


def test_an_interrupt_saves_and_says_how_to_go_on(
    tiny_llava, llava_json, tmp_path, capsys, monkeypatch
):
    from atp_cpp.train.run import Trainer

    one = Trainer._one

    def then_interrupt(self):
        row = one(self)
        if row.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return row

    monkeypatch.setattr(Trainer, "_one", then_interrupt)
    out = tmp_path / "out"
    command = [
        "train", "-m", str(tiny_llava), "--data", str(llava_json), "--out", str(out), "--mode",
        "thresholds", "--steps", "3", "--device", "cpu",
    ]  # fmt: skip
    assert main(command) == 130
    assert "stopped after step 2; the same command with --resume" in capsys.readouterr().err
    assert not (out / "atp.json").exists()
    assert main([*command, "--resume"]) == 0
    assert (out / "atp.json").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cuts": (2,)}, "expected cuts to be"),
        ({"mode": "full"}, "expected mode to be thresholds"),
        ({"seed": 1}, "expected seed to be 0"),
    ],
)
def test_another_runs_checkpoint_is_refused(trainer, changes, says):
    run = trainer(mode="thresholds")
    run.save()
    with pytest.raises(AtpError, match=says):
        trainer(**{"mode": "thresholds", **changes}, resume=True)


def test_a_changed_rate_is_taken_and_named(trainer):
    trainer(mode="thresholds", lr_heads=0.25).save()
    assert trainer(mode="thresholds", lr_heads=0.5, resume=True).changed == (
        "lr_heads: 0.25 -> 0.5",
    )


def test_a_damaged_checkpoint_is_named(trainer, options):
    trainer(mode="thresholds").save()
    file = options().out / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(AtpError, match=r"checkpoint\.pt: not a checkpoint"):
        trainer(mode="thresholds", resume=True)
    file.unlink()
    with pytest.raises(AtpError, match="no checkpoint to resume"):
        trainer(mode="thresholds", resume=True)


def test_a_loss_that_is_no_number_ends_the_run(trainer):
    import torch

    run = trainer(mode="full")
    with torch.no_grad():
        run.llava.language.norm.weight.fill_(float("nan"))
    with pytest.raises(AtpError, match="loss is nan at step 1; lower --lr-llm"):
        list(run.steps())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cuts": (0, 2)}, "ascending layer counts from 1 to 4, got 0,2"),
        ({"cuts": (3, 1)}, "ascending layer counts"),
        ({"cuts": (5,)}, "ascending layer counts"),
        ({"device": "cuda:99"}, "--device cuda:99: torch cannot use it"),
        ({"device": "tpu"}, "--device tpu: torch cannot use it"),
    ],
)
def test_what_the_model_or_machine_has_not_is_refused(trainer, changes, says):
    with pytest.raises(AtpError, match=says):
        trainer(**changes)


def test_only_llava_checkpoints(trainer, tmp_path):
    with pytest.raises(ModelError, match="no processor"):
        trainer(model=tmp_path)
    for path in DEMO_HF.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "qwen2_vl"}))
    with pytest.raises(ModelError, match="model_type llava, as llava-hf's"):
        trainer(model=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot be loaded"):
        trainer(model=tmp_path)


def test_fixed_shares_keep_the_same_count_of_every_question(trainer):
    run = trainer(mode="full", rule="redundant", fixed=(0.5, 0.25), hard=0.5)
    heads = {name: p.clone() for name, p in run.trained.items() if name.startswith("heads.")}
    rows = list(run.steps())
    assert [rows[-1].values[f"tokens_{i}"] for i in (1, 2)] == [8, 4]  # hard at the end
    assert rows[0].values["tokens_1"] != 8  # soft at first
    watched = run.finish()
    assert watched.kept == (0.5, 0.25)
    assert all((run.trained[name] == value).all() for name, value in heads.items())
    assert (run.options.out / "model").exists()
    assert not (run.options.out / "atp.json").exists()  # the engine has no such module


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fixed": (0.5, 0.25), "rule": "union"}, "mode full or lora and rule redundant"),
        ({"fixed": (0.5, 0.25), "mode": "thresholds"}, "mode full or lora and rule redundant"),
        ({"fixed": (0.5,)}, "expected fixed to be 2 shares"),
        ({"fixed": (0.25, 0.5)}, "none above the one before"),
        ({"fixed": (1.5, 0.5)}, "shares in 0 … 1"),
    ],
)
def test_fixed_shares_that_cannot_be_are_refused(trainer, changes, says):
    with pytest.raises(AtpError, match=says):
        trainer(**{"mode": "full", "rule": "redundant", **changes})


def test_a_run_can_start_from_anothers_weights(trainer, tmp_path):
    from atp_cpp.train.checkpoint import load_weights

    first = trainer(mode="full", out=tmp_path / "a")
    assert len(list(first.steps())) == 3
    first.save()
    second = trainer(mode="full", rule="redundant", out=tmp_path / "b")
    load_weights(tmp_path / "a", second.trained)
    assert second.step == 0
    assert all((second.trained[name] == p).all() for name, p in first.trained.items())
    with pytest.raises(AtpError, match="of another model or mode"):
        load_weights(tmp_path / "a", trainer(mode="lora", out=tmp_path / "c").trained)
    with pytest.raises(AtpError, match="there is none"):
        load_weights(tmp_path / "c", second.trained)


def test_an_interrupted_save_keeps_the_checkpoint_before(trainer, monkeypatch):
    import torch

    def interrupted(content, stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    run = trainer(mode="thresholds")
    run.save()
    folder = run.options.out
    path = folder / "checkpoint.pt"
    before, names = path.read_bytes(), sorted(p.name for p in folder.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.save()
    assert path.read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == names


def test_a_checkpoint_from_before_an_option_had_its_default(trainer, tmp_path):
    import torch

    run = trainer(mode="thresholds")
    run.save()
    path = run.options.out / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    del content["options"]["fixed"]
    torch.save(content, path)
    assert trainer(mode="thresholds", resume=True).changed == ()


def test_scores_learn_to_point_at_what_later_layers_attend_to(trainer):
    run = trainer(steps=12, align=0.7, lr_llm=1e-2, warmup=0)
    rows = list(run.steps())
    aligned = [row.values["loss_align"] for row in rows if "loss_align" in row.values]
    assert len(aligned) == 9  # of 12 steps, progress 0 to 8 / 12
    assert np.mean(aligned[-3:]) < 0.85 * aligned[0]
    assert all("mean_tokens" not in row.values for row in rows[:9])
    assert all("mean_tokens" in row.values for row in rows[9:])
