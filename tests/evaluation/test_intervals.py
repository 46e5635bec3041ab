import math

import numpy as np
import pytest

from atp_cpp.evaluation.intervals import Z_95, difference_text, wilson


def test_published_values():
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_holds_the_true_share_in_about_95_of_100_samples(share):
    hits = np.random.default_rng(0).binomial(300, share, 4000) / 300
    inside = [low <= share <= high for low, high in (wilson(hit, 300) for hit in hits)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


def test_z_is_the_normal_quantile():
    assert math.erf(Z_95 / math.sqrt(2)) == pytest.approx(0.95, abs=1e-4)


def test_a_difference_shows_its_interval():
    assert difference_text(1.0, 0.5) == "+1.0 [+0.0, +2.0]"
    assert difference_text(-0.7, 0.3) == "-0.7 [-1.3, -0.1]"
