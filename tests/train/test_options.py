"""Settings of a training run: what is refused, and how rates, masks and the target change."""

import io
import json
import math
from pathlib import Path

import pytest

from atp_cpp.cli.program import build_parser
from atp_cpp.cli.terminal import Output
from atp_cpp.cli.train import options_from
from atp_cpp.errors import AtpError
from atp_cpp.train.options import TrainOptions


def options(**given):
    return TrainOptions(model=Path("m"), data=Path("d"), out=Path("o"), **given)


def test_the_rate_rises_stays_and_falls():
    o = options(warmup=10, cooldown=0.4)
    assert [o.rate(step, 0.0) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert o.rate(10, 0.1) == o.rate(100, 0.6) == 1.0
    falling = [o.rate(100, p) for p in (0.7, 0.8, 0.9, 1.0)]
    assert falling == sorted(falling, reverse=True)
    assert falling[1] == pytest.approx(0.02 + 0.98 * 0.5)
    assert falling[-1] == pytest.approx(0.02)


def test_masks_harden_and_end_hard():
    o = options(temperature=10.0, temperature_end=100.0, hard=0.25)
    assert o.mask(0.0) == (10.0, False)
    assert o.mask(0.375)[0] == pytest.approx(math.sqrt(1000.0))
    assert o.mask(0.75) == (pytest.approx(100.0), False)
    assert o.mask(0.8) == (pytest.approx(100.0), True)
    assert options(hard=0.0).mask(1.0)[1] is False
    assert options(hard=1.0).mask(0.1) == (pytest.approx(100.0), True)


def test_the_target_comes_down_to_the_budget():
    o = options(budget=0.25, budget_start=0.45, ease=0.4)
    assert [o.target(p) for p in (0.0, 0.2, 0.4, 1.0)] == pytest.approx([0.45, 0.35, 0.25, 0.25])
    assert options(budget=0.6).target(0.0) == 0.6


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"budget": 0.0}, r"--budget to be a fraction in \(0, 1\], got 0.0"),
        ({"budget": 144}, "--budget"),
        ({"budget": math.nan}, "--budget"),
        ({"mode": "half"}, "--mode to be one of thresholds, full, lora, got 'half'"),
        ({"dtype": "f16"}, "--dtype to be one of f32, bf16"),
        ({"minutes": -1.0}, "--minutes"),
        ({"steps": -1}, "--steps of at least 0"),
        ({"images_per_batch": 0}, "--images-per-batch of at least 1"),
        ({"lr_llm": -1e-4}, "--lr-llm of at least 0"),
        ({"lr_heads": math.nan}, "--lr-heads"),
        ({"lambda_target": math.inf}, "--lambda-target"),
        ({"hard": 1.5}, "--hard to be a share from 0 to 1, got 1.5"),
        ({"align": 1.0}, "--align to be a share from 0 to below 1, got 1.0"),
        ({"align": 0.1, "mode": "thresholds"}, "--align teaches the language model"),
    ],
)
def test_what_cannot_be_meant_is_refused(given, says):
    with pytest.raises(AtpError, match=says):
        options(**given)


def parse(*more):
    args = build_parser().parse_args(["train", "-m", "hf", "--data", "q.json", "--out", "o", *more])
    return options_from(args)


def test_the_command_line_says_it_all():
    given = parse(
        "--cuts", "4,14,24", "--budget", "0.15", "--mode", "lora", "--steps", "7", "--minutes", "2",
        "--images-per-batch", "3", "--lr-heads", "0.1", "--image-dir", "pics", "--watch", "w.json",
        "--lambda-atp", "0.05", "--dtype", "bf16", "--device", "cpu", "--seed", "9",
    )  # fmt: skip
    assert given == TrainOptions(
        model=Path("hf"), data=Path("q.json"), out=Path("o"), cuts=(4, 14, 24), budget=0.15,
        mode="lora", steps=7, minutes=2.0, images_per_batch=3, lr_heads=0.1,
        image_dir=Path("pics"), watch=Path("w.json"), lambda_atp=0.05, dtype="bf16", device="cpu",
        seed=9,
    )  # fmt: skip
    assert parse() == TrainOptions(model=Path("hf"), data=Path("q.json"), out=Path("o"))
    assert json.loads(json.dumps(given.as_plain()))["cuts"] == [4, 14, 24]


def test_cuts_are_numbers(capsys):
    with pytest.raises(SystemExit, match="2"):
        parse("--cuts", "four")
    assert "expected layer counts as 4,14,24, got 'four'" in capsys.readouterr().err


def test_missing_packages_are_named_with_what_to_install(monkeypatch, tmp_path, capsys):
    from atp_cpp.cli import train as cmd_train
    from atp_cpp.cli.program import main

    monkeypatch.setattr(cmd_train, "find_spec", lambda name: None if name == "torch" else name)
    command = ["train", "-m", str(tmp_path), "--data", "q", "--out", str(tmp_path / "o")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "training needs torch; pip install 'atp_cpp[train]'" in said


def test_a_bar_needs_no_known_total(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    with Output().progress(iter("abc"), None, unit="step") as items:
        assert list(items) == ["a", "b", "c"]
    assert "3step" in screen.getvalue()
