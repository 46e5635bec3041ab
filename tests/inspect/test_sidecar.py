from pathlib import Path

import pytest

from atp_cpp import Captioner, PlanError
from atp_cpp.inspect.sidecar import inspect_sidecar

SCENE = Path(__file__).resolve().parents[2] / "examples" / "scene.png"


def test_the_floor_is_where_budgets_end():
    """`inspect` names the share that no budget can go below, and the engine agrees."""
    with Captioner() as captioner:
        facts = inspect_sidecar(captioner.atp)
        assert facts.floor == pytest.approx(1 / 12)
        assert any("least mean" in line and "8.3%" in line for line in facts.lines())
        with pytest.raises(PlanError, match="budget"):
            captioner.caption(SCENE, policy=f"atp:budget={facts.floor:.4f}")
