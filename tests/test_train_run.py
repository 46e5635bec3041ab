"""Training on a tiny random LLaVA-1.5: runs go on exactly and change only what they should."""

import csv
import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from atp_cpp.cli import main
from atp_cpp.errors import AtpError, ModelError
from tiny_llava_hf import DEMO_HF, N_LAYER, SIDE, write_tiny_llava

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_llava(tmp_path_factory.mktemp("tiny") / "tiny-llava")


@pytest.fixture(scope="module")
def llava_json(tmp_path_factory):
    """LLaVA's own format: images of noise, two turns each."""
    folder = tmp_path_factory.mktemp("data")
    entries = []
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        said = ["<image>\nwhat color is the circle?", ("red", "blue")[number % 2]]
        said += ["how many shapes are there?", str(number)]
        talk = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(said)]
        entries.append({"id": str(number), "image": f"{number}.png", "conversations": talk})
    (folder / "llava.json").write_text(json.dumps(entries))
    return folder / "llava.json"


@pytest.fixture
def options(checkpoint, llava_json, tmp_path):
    """`options(**changes) -> TrainOptions` of a short run."""
    from atp_cpp.train.options import TrainOptions

    def make(**changes):
        given = {
            "model": checkpoint, "data": llava_json, "out": tmp_path / "run", "cuts": (1, 3),
            "budget": 0.5, "steps": 3, "images_per_batch": 2, "questions_per_image": 2,
            "warmup": 1, "watch_every": 2, "device": "cpu", "lr_llm": 1e-3,
        }  # fmt: skip
        return TrainOptions(**{**given, **changes})

    return make


@pytest.fixture
def trainer(options):
    """`trainer(resume=False, **changes) -> Trainer`; closed at the end."""
    from atp_cpp.train.run import Trainer

    made = []

    def make(resume=False, **changes):
        made.append(Trainer(options(**changes), resume=resume))
        return made[-1]

    yield make
    for one in made:
        one.close()


def weights(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


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


def test_thresholds_leave_the_language_model_alone(trainer, checkpoint):
    run = trainer(mode="thresholds")
    before = {name: p.clone() for name, p in run.llava.named_parameters()}
    assert len(list(run.steps())) == 3
    run.finish()
    for name, parameter in run.llava.named_parameters():
        same = bool((parameter == before[name]).all())
        assert same != name.startswith("heads."), name
    assert not (run.options.out / "model").exists()
    from atp_cpp.sidecar import AtpSidecar, fingerprint_from_arrays

    sidecar = AtpSidecar.load_dir(run.options.out)
    stored = weights(checkpoint)
    assert sidecar.fingerprint == fingerprint_from_arrays(norms(stored))


def norms(stored):
    prefix = next(n for n in stored if n.endswith("layers.0.input_layernorm.weight")).split(
        "layers."
    )[0]
    yield stored[prefix + "norm.weight"].astype(np.float32)
    for il in range(N_LAYER):
        for part in ("input_layernorm", "post_attention_layernorm"):
            yield stored[f"{prefix}layers.{il}.{part}.weight"].astype(np.float32)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_tuned_model_is_saved_as_it_was_watched(trainer, tmp_path, mode):
    from atp_cpp.sidecar import AtpSidecar, fingerprint_from_arrays

    half = write_tiny_llava(tmp_path / "half", dtype="float16")
    run = trainer(model=half, mode=mode, name="small")
    assert len(list(run.steps())) == 3
    watched = run.finish()
    folder = run.options.out / "model"
    old, new = weights(half), weights(folder)
    assert {n: (v.shape, v.dtype) for n, v in old.items()} == {
        n: (v.shape, v.dtype) for n, v in new.items()
    }
    for name in old:
        changed = (old[name] != new[name]).any()
        tuned = "language_model" in name and "embed" not in name
        assert changed or not tuned or "lm_head" in name, name
        if "vision" in name or "projector" in name or (mode == "lora" and "embed" in name):
            assert not changed, name
    assert (
        old[next(n for n in old if "lm_head" in n)] != new[next(n for n in new if "lm_head" in n)]
    ).any() == (mode == "full")
    sidecar = AtpSidecar.load_dir(run.options.out)
    assert sidecar.fingerprint == fingerprint_from_arrays(norms(new))
    assert sidecar.fingerprint != fingerprint_from_arrays(norms(old))
    assert (sidecar.name, sidecar.base_name, sidecar.mode) == ("atp-small", "small", mode)
    assert sidecar.kept == pytest.approx(watched.kept)
    assert sidecar.grid == (SIDE, SIDE) and sidecar.cuts == (1, 3)
    # what was written, read again with the sidecar's heads, gives the same figures
    again = trainer(model=folder, mode="thresholds", out=tmp_path / "again")
    copy_heads(sidecar, again.llava)
    assert again.watch().loss == pytest.approx(watched.loss, rel=1e-4)
    assert again.watch().kept == pytest.approx(watched.kept)


def copy_heads(sidecar, llava):
    import torch

    with torch.no_grad():
        for cut, head in zip(sidecar.cuts, llava.heads, strict=True):
            for part in ("proj", "theta_r", "theta_s"):
                for kind, value in getattr(head, part).named_parameters():
                    value.copy_(
                        torch.from_numpy(sidecar.tensors[f"blk.{cut - 1}.atp_{part}.{kind}"])
                    )


def test_adapters_start_at_nothing_and_merge_exactly(trainer, tmp_path):
    plain = trainer(mode="thresholds", out=tmp_path / "p")
    run = trainer(mode="lora", out=tmp_path / "l")
    assert run.watch().loss == pytest.approx(plain.watch().loss, rel=1e-6)
    for _ in run.steps():
        pass
    from atp_cpp.train.modes import merge_adapters

    before = run.watch()
    assert before.loss != pytest.approx(plain.watch().loss, rel=1e-6)
    merge_adapters(run.llava)
    assert run.watch().loss == pytest.approx(before.loss, rel=1e-4)
    assert not [name for name, _ in run.llava.named_modules() if name.endswith(".down")]


def test_the_command_trains_and_writes_a_sidecar(checkpoint, llava_json, tmp_path, capsys):
    out = tmp_path / "out"
    command = [
        "train", "-m", str(checkpoint), "--data", str(llava_json), "--out", str(out), "--mode",
        "thresholds", "--cuts", "2", "--steps", "2", "--images-per-batch", "2", "--device", "cpu",
    ]  # fmt: skip
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n"
    assert "modules after 2 layers" in captured.err and "held-out accuracy" in captured.err
    meta = json.loads((out / "atp.json").read_text())
    assert meta["cuts"] == [2] and meta["base_name"] == "tiny-llava"
    assert meta["data"] == "llava.json, 5 images"
    assert main(command) == 2
    assert "--resume goes on with it" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0  # nothing left to do: writes the folder again
    assert json.loads((out / "atp.json").read_text()) == meta


def test_the_clock_can_end_a_run(trainer):
    run = trainer(mode="thresholds", steps=None, minutes=0.02)
    rows = list(run.steps())
    assert rows and rows[-1].values["seconds"] >= 0.02 * 60
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
    checkpoint, llava_json, tmp_path, capsys, monkeypatch
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
        "train", "-m", str(checkpoint), "--data", str(llava_json), "--out", str(out), "--mode",
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
    trainer(mode="thresholds").save()
    assert trainer(mode="thresholds", lr_heads=0.5, resume=True).changed == (
        "lr_heads: 0.003 -> 0.5",
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


def test_bf16_keeps_what_is_trained_in_float32(trainer):
    import torch

    run = trainer(mode="lora", dtype="bf16")
    for name, parameter in run.llava.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), (
            name
        )
    rows = list(run.steps())
    assert len(rows) == 3 and all(np.isfinite(row.values["loss"]) for row in rows)
    run.finish()


# -- the ablation with fixed shares ---------------------------------------------------------------


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


def test_a_checkpoint_from_before_an_option_had_its_default(trainer, tmp_path):
    import torch

    run = trainer(mode="thresholds")
    run.save()
    path = run.options.out / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    del content["options"]["fixed"]
    torch.save(content, path)
    assert trainer(mode="thresholds", resume=True).changed == ()
