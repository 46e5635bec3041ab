"""caption_many with a fake engine that says what image and what prompt it was given."""

import pytest
from PIL import Image

from atp_cpp import Captioner
from support.fake_batch_engine import FakeBatchEngine
from support.fake_runs import picture


@pytest.fixture
def make(fake_engine):
    """`make(**steer) -> (captioner, engine)`."""

    def new(spec=None, options=(), fingerprint=str, **steer):
        engine = fake_engine(spec, FakeBatchEngine, fingerprint, **steer)
        cap = Captioner("model.gguf", mmproj="mmproj.gguf", **dict(options))
        return cap, engine.made[0]

    return new


@pytest.fixture
def folder(tmp_path):
    """Paths of 12 images of one shade each; the fake's caption names it."""
    paths = []
    for i in range(12):
        paths.append(tmp_path / f"{i:02}.png")
        Image.fromarray(picture(10 * i)).save(paths[-1])
    return paths
