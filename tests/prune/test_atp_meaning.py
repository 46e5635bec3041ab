"""What the learned thresholds of a sidecar do: do they follow image and question at all?

Equality with a twin says that three programs compute one formula. It does not say that the formula
does anything. These tests ask what would differ if the learned heads did nothing. The shipped
sidecar fails them: its thresholds are constants, and the README says so. `strict` turns these tests
red on the day when a sidecar passes, so that the README can be changed.
"""

from dataclasses import replace

import numpy as np
import pytest

from atp_cpp import Captioner
from atp_cpp.options.plan import SamplingConfig
from atp_cpp.sidecar.sidecar import AtpSidecar
from support.drawn_pictures import drawn

N_PROMPTS = 100
ONE_TOKEN = SamplingConfig(n_predict=1)
LEAST_SD = 0.01  # of a threshold over prompts; both thresholds lie between 0 and 1
LEAST_CHANGE = 0.05  # share of the kept tokens that must change when the heads are zeroed

pytestmark = pytest.mark.slow
constant = pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="the demo's learned thresholds are constants"
)


def asked(atp=None):
    """(thresholds [prompts, cuts, 2], keep lists [prompts][cuts]) of the demo model."""
    thresholds, kept = [], []
    with Captioner(atp=atp) as captioner:
        for number in range(N_PROMPTS):
            picture, question = drawn(number)
            report = captioner.caption(picture, question, sampling=ONE_TOKEN).report
            thresholds.append([at[:2] for at in report.thresholds])
            kept.append([set(cells) for cells in report.kept])
    return np.array(thresholds), kept


def with_heads(sidecar, scale, means):
    """The sidecar with the heads' weights times `scale`, and thresholds of the same means.

    A head gives logit(theta) = w z + b. The new bias (1 - scale) logit(mean) + scale b keeps the
    threshold of the average prompt where it was. At scale 0 every prompt has that threshold.
    """
    tensors = dict(sidecar.tensors)
    for cut, row in zip(sidecar.cuts, means, strict=True):
        for theta, mean in zip(("theta_r", "theta_s"), row, strict=True):
            name = f"blk.{cut - 1}.atp_{theta}."
            logit = np.log(mean / (1 - mean))
            bias = (1 - scale) * logit + scale * sidecar.tensors[name + "bias"]
            tensors[name + "weight"] = sidecar.tensors[name + "weight"] * np.float32(scale)
            tensors[name + "bias"] = bias.astype(np.float32)
    return replace(sidecar, tensors=tensors)


def changed(one, other):
    """Mean share of the tokens kept by either that only one of both keeps."""
    shares = [
        len(a ^ b) / len(a | b)
        for kept_a, kept_b in zip(one, other, strict=True)
        for a, b in zip(kept_a, kept_b, strict=True)
    ]
    return float(np.mean(shares))


@pytest.fixture(scope="module")
def shipped():
    with Captioner() as captioner:
        return AtpSidecar.read_gguf(captioner.atp)


@pytest.fixture(scope="module")
def of_shipped():
    return asked()


@pytest.fixture(scope="module")
def of_zeroed(shipped, of_shipped, tmp_path_factory):
    means = of_shipped[0].mean(axis=0)
    path = tmp_path_factory.mktemp("zeroed") / shipped.file_name
    return asked(with_heads(shipped, 0, means).write_gguf(path))


@constant
def test_thresholds_vary_over_prompts(of_shipped):
    assert of_shipped[0].std(axis=0).max() > LEAST_SD


@constant
def test_heads_without_weights_keep_other_tokens(of_shipped, of_zeroed):
    assert changed(of_shipped[1], of_zeroed[1]) > LEAST_CHANGE


def test_zeroed_heads_give_one_threshold(of_zeroed):
    assert np.ptp(of_zeroed[0], axis=0).max() < 1e-12


def test_these_tests_can_pass(shipped, of_shipped, of_zeroed, tmp_path):
    """Heads with two hundred times the weights pass both tests on the same prompts."""
    path = tmp_path / shipped.file_name
    means = of_shipped[0].mean(axis=0)
    lively = asked(with_heads(shipped, 200, means).write_gguf(path))
    assert lively[0].std(axis=0).max() > LEAST_SD
    assert changed(lively[1], of_zeroed[1]) > LEAST_CHANGE
