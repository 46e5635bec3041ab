"""The same modules in the engine and in torch: what is trained is what runs."""

from pathlib import Path

import numpy as np
import pytest

import atp_cpp
from atp_cpp.models.files import DEMO_DIR, DEMO_MMPROJ, DEMO_MODEL
from atp_cpp.sidecar.fingerprint import fingerprint_from_gguf
from support.random_sidecar import random_sidecar
from support.tiny_llava_hf import DEMO_HF
from support.train_modules import load_heads, spec_of

pytestmark = pytest.mark.torch

SCENE = Path(__file__).resolve().parents[2] / "examples" / "scene.png"
QUESTIONS = ("Describe the image.", "how many shapes are there?", "is there a red shape?")
CUTS = (1, 5, 9)
# Q8_0 weights and an f16 KV cache in the engine, float32 of float16 weights in torch
THRESHOLD_ERROR = 1e-3
KEPT_ALIKE = 0.9  # of the kept tokens: those next to a threshold may fall on either side


@pytest.fixture(scope="module")
def sidecar():
    """Random heads whose thresholds stay near the middle of the scores."""
    made = random_sidecar(
        4, n_layer=12, n_embd=256, n_head=4, cuts=CUTS, grid=(24, 24), n_bins=64, n_hidden=64,
        fingerprint=fingerprint_from_gguf(DEMO_DIR / DEMO_MODEL), kept=(0.5, 0.3, 0.2),
    )  # fmt: skip
    for name, array in made.tensors.items():
        if "theta" in name:
            array *= 0.05
            array += 1.5 * ("theta_s.bias" in name)
    return made


@pytest.fixture(scope="module")
def in_torch(sidecar):
    """The pass of all questions: decisions and live tokens after each cut."""
    import torch
    from transformers import LlavaForConditionalGeneration

    from atp_cpp.train.data import Batches, Item, Turn, load_processor
    from atp_cpp.train.insert import AtpLlava

    model = LlavaForConditionalGeneration.from_pretrained(DEMO_HF, dtype=torch.float32).eval()
    llava = AtpLlava(model, spec_of(sidecar), (24, 24))
    load_heads(sidecar, llava.heads)
    item = Item((SCENE,), tuple(Turn(question, "yes") for question in QUESTIONS))
    sizes = {"images_per_batch": 1, "questions_per_image": len(QUESTIONS), "seed": 0}
    batches = Batches([item], load_processor(DEMO_HF), **sizes)
    (batch,) = batches.once()
    batches.close()
    given = (batch.input_ids, batch.attention_mask, batch.prompt_len)
    with torch.no_grad():
        _, now = llava(*given, llava.image_features(batch.pixel_values), batch.image_of)
    first = int((batch.input_ids[0] == model.config.image_token_id).int().argmax())
    return now, first


def test_thresholds_and_keep_lists_agree(sidecar, in_torch, tmp_path):
    now, first = in_torch
    path = tmp_path / "random.gguf"
    sidecar.write_gguf(path)
    files = {"mmproj": DEMO_DIR / DEMO_MMPROJ, "atp": path}
    with atp_cpp.Captioner(DEMO_DIR / DEMO_MODEL, **files, n_ctx=1024) as captioner:
        one = atp_cpp.SamplingConfig(n_predict=1)
        reports = [captioner.caption(SCENE, q, sampling=one).report for q in QUESTIONS]
    for sample, report in enumerate(reports):
        assert len(report.kept) == len(CUTS)
        for number, decision in enumerate(now.decisions):
            expected = float(decision.theta_r[sample]), float(decision.theta_s[sample])
            measured = report.thresholds[number]
            assert measured[:2] == pytest.approx(expected, abs=THRESHOLD_ERROR)
            assert measured[2] == 0
            index, live = now.alive[number]
            ours = set((index[sample][live[sample] > 0.5] - first).tolist())
            theirs = set(report.kept[number])
            assert len(ours & theirs) >= KEPT_ALIKE * len(ours | theirs)
    shares = np.array([report.n_kept for report in reports]) / 576
    assert (shares > 0.02).all() and (shares < 0.95).all()  # something is kept, something dropped
    assert len({tuple(report.n_kept) for report in reports}) > 1  # each question has its own
