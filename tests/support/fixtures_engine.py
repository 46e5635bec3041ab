"""Fixtures of the engine's law tests."""

import numpy as np
import pytest

from atp_cpp import _core as core
from support.rig import ARCHS, PRECISIONS, Rig
from tiny_models import LAYOUT_OF_ARCH


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


@pytest.fixture(scope="session")
def make_engine(tiny_model, tiny_mmproj):
    """`make_engine(arch, **options) -> Engine` with the vision tower of that architecture.

    `layout` and `sizes` choose another tower or decoder.
    """

    def make(arch, layout=None, sizes=(), **options):
        layout = layout or LAYOUT_OF_ARCH.get(arch, "mlp")
        options = {"n_ctx": 512, "n_ubatch": 64, "n_threads": 1} | options
        model = tiny_model(arch, **dict(sizes))
        return core.Engine(str(model), str(tiny_mmproj(layout)), **options)

    return make


@pytest.fixture(scope="module")
def engines(make_engine):
    """`engines(arch)`: one engine for each architecture, shared by a test module."""
    made = {}

    def get(arch):
        if arch not in made:
            made[arch] = make_engine(arch)
        return made[arch]

    yield get
    for engine in made.values():
        engine.close()
