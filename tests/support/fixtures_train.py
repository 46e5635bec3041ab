"""Fixtures of the training tests."""

import json

import numpy as np
import pytest
from PIL import Image

from support.tiny_llava_hf import write_tiny_llava


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory):
    return write_tiny_llava(tmp_path_factory.mktemp("tiny") / "tiny-llava")


@pytest.fixture(scope="session")
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
def options(tiny_llava, llava_json, tmp_path):
    """`options(**changes) -> TrainOptions` of a short run."""
    from atp_cpp.train.options import TrainOptions

    def make(**changes):
        given = {
            "model": tiny_llava, "data": llava_json, "out": tmp_path / "run", "cuts": (1, 3),
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
