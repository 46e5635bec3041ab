"""The engine's keep lists are torch's, with the demo model's weights in F32 on both sides."""

import sys
from pathlib import Path

import pytest

from atp_cpp.convert.run import convert_hf
from atp_cpp.models.files import DEMO_ATP, DEMO_DIR
from atp_cpp.sidecar.fingerprint import fingerprint_from_gguf
from support.drawn_pictures import drawn
from support.random_sidecar import random_sidecar
from support.tiny_llava_hf import DEMO_HF

pytestmark = pytest.mark.torch

TOOLS = Path(__file__).resolve().parents[2] / "research" / "demo_model"
N_PICTURES = {"shipped": 200, "random": 40}
THRESHOLDS = 1e-4


@pytest.fixture(scope="module")
def parity():
    """The tool's module."""
    sys.path.insert(0, str(TOOLS))
    try:
        import parity

        yield parity
    finally:
        sys.path.remove(str(TOOLS))
        sys.modules.pop("parity", None)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(decoder, eye and projector) of the demo checkpoint, every tensor in F32."""
    folder = tmp_path_factory.mktemp("f32")
    written = convert_hf(DEMO_HF, folder, outtype="f32", mmproj_outtype="f32")
    return tuple(file.path for file in written)


@pytest.fixture(scope="module")
def sidecars(files, tmp_path_factory):
    """The demo's, and one of random heads whose thresholds move near the scores."""
    made = random_sidecar(
        4, n_layer=12, n_embd=256, n_head=4, cuts=(1, 5, 9), grid=(24, 24), n_bins=64, n_hidden=64,
        fingerprint=fingerprint_from_gguf(files[0]), kept=(0.5, 0.3, 0.2),
    )  # fmt: skip
    for name, array in made.tensors.items():
        if "theta" in name:
            array *= 0.05
            array += 1.5 * ("theta_s.bias" in name)
    random = made.write_gguf(tmp_path_factory.mktemp("atp") / "atp.gguf")
    return {"shipped": DEMO_DIR / DEMO_ATP, "random": random}


@pytest.fixture
def make_torch_side(parity):
    """`make_torch_side(sidecar) -> TorchSide` of the demo checkpoint."""
    from atp_cpp.sidecar.sidecar import AtpSidecar

    return lambda sidecar: parity.TorchSide(DEMO_HF, AtpSidecar.read_gguf(sidecar))


def check(summary, n_pictures, n_other, margin):
    """Every picture alike, but for `n_other` where all that differs is this near to a threshold."""
    assert summary["pictures"] == n_pictures
    assert summary["largest_threshold_error"] < THRESHOLDS
    differing = summary["margins_of_differing_tokens"]
    assert summary["same_keep_lists"] == n_pictures - len(differing) >= n_pictures - n_other
    assert all(abs(m) < margin for margins in differing for m in margins)


@pytest.mark.parametrize("name", N_PICTURES)
def test_the_same_keep_lists_from_the_same_features(parity, files, sidecars, make_torch_side, name):
    """About 30 s of CPU. A margin of some F32 roundings, at scores of about 0.5."""
    torch_side = make_torch_side(sidecars[name])
    engine = parity.EngineSide(files[0], sidecars[name], (24, 24), n_threads=2)
    pictures = [drawn(number) for number in range(N_PICTURES[name])]
    results = list(parity.from_same_features(pictures, torch_side, engine))
    summary = parity.summary(results)
    check(summary, len(pictures), n_other=2, margin=1e-5)
    # it is no agreement about nothing: all are dropped, none are, or always the same
    for k in range(len(torch_side.llava.spec.cuts)):
        lists = {tuple(decided.kept[k]) for _, decided in results}
        thresholds = {decided.thresholds[k] for _, decided in results}
        assert min(len(lists), len(thresholds)) > len(pictures) / 2
    assert 0.1 * 576 < summary["kept_mean"][0] < 0.9 * 576
    assert summary["kept_mean"][-1] > 0.02 * 576


def test_the_same_keep_lists_from_the_picture(parity, files, sidecars, make_torch_side):
    """Each side with its own encoder and prompt; llama.cpp's GELU reads a table of halves."""
    import atp_cpp

    model, mmproj = files
    options = {"mmproj": mmproj, "atp": sidecars["random"], "n_threads": 2, **parity.EXACT}
    torch_side = make_torch_side(sidecars["random"])
    with atp_cpp.Captioner(model, **options) as captioner:
        results = list(parity.from_pictures(map(drawn, range(20)), torch_side, captioner))
    check(parity.summary(results), 20, n_other=3, margin=1e-4)


def test_a_difference_is_seen_and_its_margin_named(parity):
    theirs = parity.Decided([[0, 2], [2]], [(0.5, 0.875), (0.4, 0.9)], [{1: -2e-6, 2: 0.3}, {}])
    same = parity.compare(theirs, theirs)
    assert (same.same, same.threshold_error, same.differing) == (True, 0.0, [])
    ours = parity.Decided([[0, 1, 2], [0]], [(0.5, 0.90625), (0.9, 0.1)], [])
    other = parity.compare(ours, theirs)
    assert (other.same, other.threshold_error, other.differing) == (False, 0.03125, [-2e-6])
