"""Fixtures of the Python side's tests."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

import atp_cpp
from atp_cpp.cli.program import main
from atp_cpp.session import Parts
from support.fake_engine import FakeEngine


class Ran:
    """What a run of the program left: exit code, stdout, stderr."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def rows(self):
        """stdout as JSON rows."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def cli(capsys):
    """`cli(*arguments) -> Ran` in this process."""

    def run(*arguments):
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def fake_engine(monkeypatch):
    """`fake_engine(**steer)`: captioners are made with a FakeEngine, those of the program too.

    `spec` is the ImageSpec of its projector, `of` another kind of engine, `fingerprint` what stands
    for the content of a model's file.
    """

    def put(spec=None, of=FakeEngine, fingerprint=str, **steer):
        engine = of.fresh(**steer)
        parts = Parts(
            engine, lambda mmproj: spec, fingerprint, note_pair=lambda model, mmproj: None
        )
        monkeypatch.setattr(atp_cpp.Captioner, "parts", parts)
        return engine

    return put


@pytest.fixture
def scene(tmp_path):
    """Path of a PNG: 60 wide, 40 high, white, a red box in its upper left."""
    path = tmp_path / "scene.png"
    image = Image.new("RGB", (60, 40), "white")
    ImageDraw.Draw(image).rectangle([4, 4, 20, 16], fill=(255, 0, 0))
    image.save(path)
    return path


@pytest.fixture
def pixels():
    """uint8 [40, 60, 3] of noise."""
    return np.random.default_rng(7).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def tiny_files(tiny_model, tiny_mmproj):
    """(model, mmproj) of a small random llama with vision: 8 layers, 8 x 8 image tokens."""
    return tiny_model("llama", n_layer=8), tiny_mmproj("mlp")


@pytest.fixture(scope="module")
def tiny_captioner(tiny_files):
    """The real engine on a small random model."""
    model, mmproj = tiny_files
    with atp_cpp.Captioner(model, mmproj=mmproj, n_ctx=512, n_threads=1) as cap:
        yield cap


@pytest.fixture(scope="module")
def demo_captioner():
    """The real engine on the model that is shipped."""
    with atp_cpp.Captioner(n_threads=2) as cap:
        yield cap
