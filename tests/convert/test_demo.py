"""The demo checkpoint, converted by the command, is the demo that is shipped."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from PIL import Image

import atp_cpp
from atp_cpp.convert.run import convert_hf
from atp_cpp.models.files import DEMO_ATP, DEMO_DIR, DEMO_MMPROJ, DEMO_MODEL
from support.drawn_pictures import drawn
from support.tiny_llava_hf import DEMO_HF

pytestmark = pytest.mark.torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# What the command's files say besides, or say otherwise. Nothing of it changes a number:
CHECKPOINT = {"atp.checkpoint": "19058b0eda561fe29fa0bfcafdd666cc"}  # in both: they know each other
KEYS = {
    "text": CHECKPOINT
    | {
        "general.name": "atp-demo",  # it was "ATP demo"
        "general.type": "model",
        "general.size_label": "8.1M",
        "llama.attention.key_length": 64,  # what width / heads gives, too
        "llama.attention.value_length": 64,
        "tokenizer.ggml.add_sep_token": False,  # the default
    },
    "mmproj": CHECKPOINT
    | {
        "general.name": "atp-demo",
        "general.size_label": "3.0M",
        # pictures that are not square: cropped as transformers does, where llama.cpp pads
        "atp.image.version": 1,
        "atp.image.resize": "shortest",
        "atp.image.size": [336, 336],
        "atp.image.resample": "bicubic",
        "atp.image.crop": [336, 336],
    },
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The command's files and those that are shipped: {part: (shipped, converted)}."""
    out = tmp_path_factory.mktemp("demo")
    text, mmproj = convert_hf(DEMO_HF, out, outtype="q8_0", model_name="atp-demo")
    names = [text.path.name, mmproj.path.name]
    assert names == ["atp-demo-q8_0.gguf", "mmproj-atp-demo-f16.gguf"]
    return {
        "text": (DEMO_DIR / DEMO_MODEL, text.path),
        "mmproj": (DEMO_DIR / DEMO_MMPROJ, mmproj.path),
    }


@pytest.mark.parametrize("part", KEYS)
def test_tensors_are_the_same_bit_for_bit(converted, part):
    shipped, ours = ({t.name: t for t in gguf.GGUFReader(path).tensors} for path in converted[part])
    assert set(ours) == set(shipped)
    for name, t in ours.items():
        assert t.tensor_type == shipped[name].tensor_type, name
        np.testing.assert_array_equal(t.data, shipped[name].data, name)


@pytest.mark.parametrize("part", KEYS)
def test_metadata_is_the_same_but_for_what_is_named(converted, part):
    shipped, ours = (
        {k: f.contents() for k, f in gguf.GGUFReader(path).fields.items() if "GGUF." not in k}
        for path in converted[part]
    )
    differing = {k: v for k, v in ours.items() if k not in shipped or shipped[k] != v}
    assert differing == KEYS[part]
    assert set(shipped) <= set(ours)
    assert ours["general.license"] == "mit", "from the checkpoint's README.md"


def pictures():
    for name in ("easy.png", "scene.png"):
        with Image.open(EXAMPLES / name) as image:
            yield image.convert("RGB"), "Describe the image."
    for number in range(6):
        yield drawn(number)


@pytest.mark.parametrize("policy", ["none", "fastv:keep=0.3,after=2", "atp"])
def test_replies_and_kept_tokens_are_the_same(converted, policy):
    options = {"n_ctx": 1024} | ({"atp": DEMO_DIR / DEMO_ATP} if policy == "atp" else {})
    rows = []
    for model, mmproj in zip(*converted.values(), strict=True):
        with atp_cpp.Captioner(model, mmproj=mmproj, **options) as captioner:
            replies = [captioner.caption(image, q, policy=policy) for image, q in pictures()]
            rows.append([(r.text, r.report.kept, r.report.thresholds) for r in replies])
    assert rows[0] == rows[1]
    assert len({text for text, _, _ in rows[0]}) > 4
    if policy == "atp":
        assert len({str(kept) for _, kept, _ in rows[0]}) == len(rows[0])
