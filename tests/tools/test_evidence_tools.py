"""The tools that measure ATP: what they compare is equal where it is said to be."""

import sys
from pathlib import Path

import numpy as np
import pytest

from atp_cpp.evaluation.evaluate import EvalRow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(monkeypatch):
    """`tool("benchmarks/eval_atp")` imports a script; what it imported goes when the test ends."""
    before = set(sys.modules)

    def load(path):
        folder, name = (ROOT / path).parent, (ROOT / path).name
        monkeypatch.syspath_prepend(str(folder))
        return __import__(name)

    yield load
    for name in set(sys.modules) - before:
        if str(ROOT) in str(getattr(sys.modules[name], "__file__", "")) and "atp_cpp" not in name:
            del sys.modules[name]


@pytest.mark.parametrize("mean", [0.99, 0.5, 0.25, 0.15, 0.0834])
def test_fixed_plans_have_the_wanted_mean_in_atps_proportions(tool, mean):
    kept, cuts, n_layer = (0.36, 0.12, 0.07), (1, 5, 9), 12
    shares = tool("benchmarks/eval_atp").same_shape(kept, cuts, n_layer, mean)
    live = [1.0] + [shares[0]] * 4 + [shares[1]] * 4 + [shares[2]] * 3
    assert sum(live) / n_layer == pytest.approx(mean, abs=1e-9)
    below = [share / k for share, k in zip(shares, kept, strict=True) if share < 1]
    assert below == pytest.approx([below[-1]] * len(below))  # one factor for all


@pytest.mark.parametrize("mean", [1 / 12, 0.01, 1.01])
def test_a_mean_that_cannot_be_is_refused(tool, mean):
    with pytest.raises(ValueError, match="cannot be had"):
        tool("benchmarks/eval_atp").same_shape((0.3, 0.2, 0.1), (1, 5, 9), 12, mean)


def row(plan, question, correct):
    return EvalRow(plan, "a.png", question, "", "all", "", correct=correct)


def test_differences_are_taken_question_by_question(tool):
    paired = tool("benchmarks/eval_atp").paired
    one = [row("a", "1", True), row("a", "2", True), row("a", "3", False), row("a", "4", True)]
    all_wrong = [row("b", q, False) for q in "54321"]
    assert paired(one, all_wrong) == (75.0, pytest.approx(25.0))
    assert paired(one, one) == (0.0, 0.0)


def test_cells_of_a_box(tool):
    box_cells = tool("research/demo_model/adaptivity").box_cells
    cells = box_cells((14, 28, 42, 70), (336, 336), (24, 24))
    assert np.argwhere(cells).tolist() == [[y, x] for y in (2, 3, 4) for x in (1, 2)]
    assert np.argwhere(box_cells((15, 15, 17, 17), (336, 336), (24, 24))).tolist() == [[1, 1]]
    assert box_cells((0, 0, 64, 64), (64, 64), (24, 24)).all()
    wide = box_cells((0, 0, 200, 100), (200, 100), (10, 10))  # stands in the middle of the grid
    assert wide.sum() == 50 and wide[3:7].all() and not wide[:2].any()


def test_correlations(tool):
    correlation = tool("research/demo_model/adaptivity").correlation
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx({"pearson": 1, "spearman": 1})
    steep = correlation([1, 2, 3, 4], [-1, -10, -100, -1000])
    assert steep["spearman"] == pytest.approx(-1) and -1 < steep["pearson"] < -0.5
    assert correlation([1, 1, 2], [5, 5, 5]) == {"pearson": 0, "spearman": 0}
    ties = tool("research/demo_model/adaptivity").ranks(np.array([3.0, 1, 3, 2]))
    assert ties.tolist() == [2.5, 0, 2.5, 1]


def test_correlation_within_a_kind_is_not_hidden_by_the_mix_of_kinds(tool):
    x, y = [1, 2, 3, 4, 5, 6], [10, 11, 12, 1, 2, 3]
    got = tool("research/demo_model/adaptivity").within(x, y, list("aaabbb"))
    assert got["all"] == pytest.approx({"pearson": 1, "spearman": 1})
    assert got["by_kind"]["b"] == pytest.approx({"n": 3, "pearson": 1, "spearman": 1})
    assert tool("research/demo_model/adaptivity").correlation(x, y)["pearson"] < 0


def test_coverage_tells_the_asked_object_from_the_others(tool):
    adaptivity = tool("research/demo_model/adaptivity")
    row = {"image": "a", "kind": "color", "box": [0, 0, 28, 28], "others": [(28, 28, 56, 56)]}
    asked = np.zeros((4, 4), bool)
    asked[:2, :2] = True
    one = adaptivity.Seen(row, True, 4.0, [asked, asked & (np.eye(4) > 0)])
    relation = adaptivity.Seen({**row, "kind": "relation"}, True, 16.0, [~asked, ~asked])
    got = adaptivity.coverage([one, relation], {"a": (56, 56)})
    assert got == {
        "n": 1, "asked": [1.0, 0.5], "others": [0.0, 0.0], "background": [0.0, 0.0],
        "any_asked": [1.0, 1.0], "quarter_asked": [1.0, 1.0],
    }  # fmt: skip
