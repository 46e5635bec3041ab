"""Fixtures of the engine's law tests; a test module names this file in `pytest_plugins`."""

import numpy as np
import pytest

from rig import ARCHS, PRECISIONS, Rig


@pytest.fixture(scope="session")
def make_rig(tiny_model):
    """`make_rig(arch, precision="f16", **options) -> Rig` of the tiny model of that name."""

    def make(arch, precision="f16", **options):
        return Rig(tiny_model(arch), arch, PRECISIONS[precision] | options)

    return make


@pytest.fixture(params=ARCHS)
def arch(request):
    """Each architecture in turn."""
    return request.param


@pytest.fixture(params=PRECISIONS)
def precision(request):
    """Each kind of KV cache in turn."""
    return request.param


@pytest.fixture(scope="session")
def pictures():
    """Three images, uint8 [56, 56, 3] of noise."""
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (56, 56, 3), dtype=np.uint8) for _ in range(3)]
