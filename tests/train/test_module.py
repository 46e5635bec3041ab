"""The torch module alone: the NumPy twin's numbers."""

import numpy as np
import pytest

from support import atp_twin
from support.atp_cases import random_case
from support.random_sidecar import random_sidecar
from support.train_modules import load_heads, spec_of

pytestmark = pytest.mark.torch


def run_module(sidecar, number, arguments, dtype):
    """(thresholds, kept) of the torch module for a case of the twin's."""
    import torch

    from atp_cpp.train.module import AtpModule, spatial_score

    spec = spec_of(sidecar)
    head = AtpModule(spec).to(dtype)
    load_heads(
        sidecar, [head if i == number else AtpModule(spec) for i in range(len(sidecar.cuts))]
    )
    grids, live = arguments["grids"], arguments["live"]
    cells = [(im, spa) for im, grid in enumerate(grids) for spa in spatial_score(*grid, spec)]
    n = len(cells) + 3  # three text rows at the end
    where = atp_twin.cells(live, grids)
    image = np.array([im for im, _, _ in where])
    causal = arguments["causal"]
    seen = atp_twin.rows_that_see(image, causal) if spec.divisor == "rows_visible" else len(live)
    columns = torch.zeros(5, 1, n, dtype=dtype)
    s_self, s_cross, spa, alive, owner = columns
    owner -= 1
    spa[:] = -torch.inf
    s_self[0, live] = torch.tensor(np.array(arguments["self_sum"]) / seen, dtype=dtype)
    s_cross[0, live] = torch.tensor(arguments["cross"], dtype=dtype)
    spa[0, : len(cells)] = torch.tensor([float(value) for _, value in cells], dtype=dtype)
    owner[0, live] = torch.tensor(image, dtype=dtype)
    alive[0, live] = 1
    with torch.no_grad():
        out = head(s_self, s_cross, spa, alive, owner.long(), temperature=None)
    kept = [i for i in live if out.mask[0, i] > 0]
    assert (out.mask[0, len(cells) :] == 1).all()
    return (float(out.theta_r), float(out.theta_s)), kept


@pytest.mark.parametrize("seed", range(60))
def test_thresholds_and_keep_lists_are_the_twins(seed):
    import torch

    sidecar, number, arguments = random_case(seed)
    expected = atp_twin.choose(sidecar, number, **arguments)
    thresholds, kept = run_module(sidecar, number, arguments, torch.float64)
    assert thresholds == pytest.approx(expected["thresholds"][:2], abs=1e-6)
    assert kept == expected["kept"]
    thresholds, _ = run_module(sidecar, number, arguments, torch.float32)
    assert thresholds == pytest.approx(expected["thresholds"][:2], abs=2e-5)


def test_an_image_nothing_of_which_is_kept_keeps_its_best():
    import torch

    sidecar = random_sidecar(2, theta_r_bias=40.0, theta_s_bias=40.0)
    rng = np.random.default_rng(0)
    case = {
        "self_sum": rng.random(32).tolist(), "cross": rng.random(32).tolist(),
        "live": list(range(32)), "grids": [(4, 4), (2, 8)], "causal": True,
    }  # fmt: skip
    _, kept = run_module(sidecar, 0, case, torch.float64)
    assert [i // 16 for i in kept] == [0, 1]
    assert kept == atp_twin.choose(sidecar, 0, **case)["kept"]


@pytest.mark.parametrize("seed", range(20))
def test_fixed_shares_keep_the_best_of_the_live_ones(seed):
    import torch

    from atp_cpp.train.module import top

    rng = np.random.default_rng(seed)
    red = rng.integers(0, 6, 20) / 8  # many ties
    live = rng.permutation(20)[: rng.integers(1, 21)]
    alive = np.isin(np.arange(20), live).astype(np.float64)
    count = int(rng.integers(1, 25))
    theta, kept = top(torch.tensor(red[None]), torch.tensor(alive[None]), torch.tensor([count]))
    best = sorted(live, key=lambda i: (-red[i], i))
    assert kept[0].nonzero()[:, 0].tolist() == sorted(best[:count])
    assert float(theta) <= red[best[:count]].min()
    assert all(red[i] <= float(theta) for i in best[count:])
