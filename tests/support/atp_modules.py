"""Policy atp on models without a sidecar of their own, and what it must decide there."""

import numpy as np
import pytest

from atp_cpp import _core as core
from support import atp_twin
from support.random_sidecar import random_sidecar


def grids_of(parts):
    return [part for part in parts if not isinstance(part, int)]


class Modules:
    """A random sidecar with cuts behind a full-attention layer each, and the plans it makes.

    Of a tiny model, unless `fields` say otherwise.
    """

    def __init__(self, rig, folder, seed=1, **fields):
        cuts = (4,) if rig.arch == "gemma3" else (2, 5)
        biases = {"theta_r_bias": 0.1, "theta_s_bias": 0.8}  # about half, then half of that
        self.sidecar = random_sidecar(seed, **({"cuts": cuts, "arch": rig.arch} | biases | fields))
        rng = np.random.default_rng([8, seed])
        for name, array in self.sidecar.tensors.items():
            if "theta" in name and name.endswith("weight"):  # else thresholds see no attention
                array[:] = rng.normal(0, 0.1, array.shape)
        self.weights = core.load_sidecar(str(self.sidecar.write_gguf(folder / "atp.gguf")))
        self.causal = rig.arch != "gemma3"

    def plan(self, budget=None):
        n_layer = self.sidecar.n_layer
        legal = range(1, n_layer)
        return core.atp_plan(self.weights, n_layer=n_layer, legal_cuts=legal, budget=budget)

    def twin(self, out, grids, budget=None):
        """Asserts that each keep list is what the twin says on the engine's own scores."""
        live = list(range(sum(r * c for r, c in grids)))
        spent, done = 0.0, 0
        for k, after in enumerate(self.sidecar.cuts):
            spent, done = spent + (after - done) * len(live), after
            expected = atp_twin.choose(
                self.sidecar, k, self_sum=out["self_sum"][k], cross=out["cross"][k], live=live,
                grids=grids, causal=self.causal, spent=spent, budget=budget,
            )  # fmt: skip
            assert out["kept"][k] == expected["kept"]
            assert out["thresholds"][k] == pytest.approx(expected["thresholds"], rel=0, abs=1e-9)
            live = out["kept"][k]
