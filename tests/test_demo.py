"""The model that is shipped: it is there, it is small, and it sees what the examples show."""

from pathlib import Path

import pytest

from atp_cpp import SamplingConfig
from atp_cpp.cli.program import main
from atp_cpp.models import files as model_files

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_files_are_at_most_30_mb():
    sizes = [
        (model_files.DEMO_DIR / name).stat().st_size
        for name in (model_files.DEMO_MODEL, model_files.DEMO_MMPROJ)
    ]
    assert sum(sizes) <= 30e6


def test_shape_is_llavas(demo_captioner):
    info = demo_captioner.info
    assert info.n_layer >= 12
    assert info.can_prune
    assert info.chat_template
    caption = demo_captioner.caption(EXAMPLES / "easy.png", sampling=SamplingConfig(n_predict=16))
    assert caption.report.grids == [(24, 24)]
    assert caption.finish_reason == "stop"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Describe the image.", "a teal triangle"),
        ("what color is the shape?", "teal"),
        ("what shape is in the image?", "triangle"),
        ("is there a red shape in the image?", "no"),
    ],
)
@pytest.mark.parametrize("policy", ["none", "fastv:keep=0.5,after=4", "grid:keep=0.5,after=4"])
def test_sees_the_easy_example(demo_captioner, question, answer, policy):
    caption = demo_captioner.caption(EXAMPLES / "easy.png", question, policy=policy)
    assert caption.text.rstrip(".").lower() == answer
    assert caption.report.n_kept == ([] if policy == "none" else [288])


def test_the_first_command_a_newcomer_types(capsys):
    assert main(["caption", str(EXAMPLES / "scene.png"), "--policy", "fastv"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert len(captured.out.split()) >= 3
    notes = captured.err.splitlines()
    assert len(notes) == 2
    assert "built-in demo model atp-demo.gguf" in notes[0]
    assert "576 image tokens, kept 288 after layer 2" in notes[1]
