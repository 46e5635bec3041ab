"""Plans and sampling: what is read, what is refused, and in which words."""

import math

import pytest

from atp_cpp._core import policy_facts
from atp_cpp.errors import AtpError, PlanError
from atp_cpp.options.plan import (
    POLICIES,
    CutSpec,
    SamplingConfig,
    format_cuts,
    parse_plan,
    parse_policy,
    plan_text,
    resolve,
    settle,
)

ALL = list(range(1, 12))  # legal cuts of a model of 12 layers


def test_policies_are_the_engines():
    assert (*policy_facts(), "atp") == POLICIES
    assert set(POLICIES) >= {"none", "random", "grid", "fastv"}


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("fastv:keep=0.25,after=2", CutSpec(2, "fastv", 0.25)),
        ("fastv", CutSpec(2, "fastv", 0.5)),
        (" grid : after=4 ", CutSpec(4, "grid", 0.5)),
        ("grid:after=0,keep=1", CutSpec(0, "grid", 1.0)),
        ("random:seed=7,keep=.5", CutSpec(2, "random", 0.5, 7)),
        ("fastv:after=0.33", CutSpec(0.33, "fastv", 0.5)),
        ("fastv: keep = 0.5 , after = 3", CutSpec(3, "fastv", 0.5)),
        ("none", CutSpec(0, "none")),
        ("none:after=4", CutSpec(4, "none")),
    ],
)
def test_reads_a_cut(text, cut):
    assert parse_policy(text) == cut


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fast", "'fast': unknown policy 'fast'; there are none, random, grid, fastv, atp"),
        ("", "unknown policy ''"),
        ("fastv:", "nothing after the colon"),
        ("fastv:kep=0.5", "unknown key 'kep'; there are after, keep, seed"),
        ("fastv:keep", "keep has no value; write keep=NUMBER"),
        ("fastv:keep=", "keep has no value"),
        ("fastv:keep=0.5,,after=2", "unknown key ''"),
        ("fastv:keep=0.5,keep=0.6", "keep stands there twice"),
        ("fastv:keep=half", "keys take numbers"),
        ("fastv:seed=1.5", "keys take numbers"),
        ("fastv:keep=0", "keep must be above 0 and at most 1"),
        ("fastv:keep=1.01", "keep must be above 0 and at most 1"),
        ("fastv:keep=-0.5", "keep must be above 0 and at most 1"),
        ("fastv:keep=nan", "keep must be above 0 and at most 1"),
        ("fastv:after=-1", "after must not be negative"),
        ("grid:after=-0.5", "neither a layer count nor a fraction"),
        ("fastv:after=1.0", "neither a layer count nor a fraction"),
        ("fastv:after=2.5", "neither a layer count nor a fraction"),
        ("fastv:after=nan", "neither a layer count nor a fraction"),
        ("fastv:after=inf", "neither a layer count nor a fraction"),
        ("fastv:after=0", "none before the first layer"),
        ("random:seed=-1", "seed must lie in"),
        ("random:seed=18446744073709551616", "seed must lie in"),
        ("none:keep=0.5", "policy none keeps everything"),
    ],
)
def test_refuses_in_clear_words(text, says):
    with pytest.raises(PlanError) as caught:
        parse_policy(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["fastv:keep=0.25,after=2", "random:keep=0.5,after=0.33,seed=9", "none:keep=1,after=3"]
)
def test_text_form_comes_back(text):
    cut = parse_policy(text)
    assert str(cut) == text
    assert parse_policy(str(cut)) == cut


def test_parse_plan_takes_every_form():
    cut = CutSpec(4, "grid", 0.5)
    assert parse_plan(None) == ()
    assert parse_plan(cut) == (cut,)
    assert parse_plan("grid:after=4") == (cut,)
    assert parse_plan(["fastv:after=2,keep=0.5", cut]) == (CutSpec(2, "fastv", 0.5), cut)


def test_keep_fills_in_where_the_text_is_silent():
    plan = parse_plan(["fastv", "grid:after=4,keep=0.1", "none"], keep=0.25)
    assert [cut.keep for cut in plan] == [0.25, 0.1, 1.0]


def test_cuts_are_frozen():
    with pytest.raises(AttributeError):
        CutSpec(2, "grid").keep = 0.5


@pytest.mark.parametrize(
    ("after", "n_layer", "expected"),
    [(0.5, 12, 6), (0.33, 12, 4), (0.25, 32, 8), (0.01, 12, 1), (0.99, 12, 11), (1 / 3, 22, 7)],
)
def test_fractions_of_the_depth(after, n_layer, expected):
    (cut,) = settle([CutSpec(after, "fastv", 0.5)], n_layer, range(1, n_layer))
    assert cut == CutSpec(expected, "fastv", 0.5)


def test_a_fraction_goes_to_the_nearest_legal_cut():
    (cut,) = settle([CutSpec(0.5, "grid", 0.5)], 12, [2, 9])
    assert cut.after == 9
    (cut,) = settle([CutSpec(0.5, "grid", 0.5)], 12, [5, 7])
    assert cut.after == 5  # a tie goes to the earlier


def test_resolve_gives_engine_cuts_in_order_of_depth():
    plan = [CutSpec(0.5, "grid", 0.25), CutSpec(0, "random", 0.75, 3), CutSpec(2, "fastv", 0.5)]
    cuts = resolve(plan, 12, ALL)
    assert [(c.after, c.policy, c.keep, c.seed) for c in cuts] == [
        (0, "random", 0.75, 3),
        (2, "fastv", 0.5, 0),
        (6, "grid", 0.25, 0),
    ]


def test_none_is_no_cut_unless_it_has_a_place():
    assert resolve([CutSpec(0, "none")], 12, ALL) == []
    assert [c.after for c in resolve([CutSpec(3, "none")], 12, ALL)] == [3]
    assert plan_text([CutSpec(0, "none")]) == plan_text([]) == "none"


def test_plan_text_joins():
    plan = parse_plan(["fastv:keep=0.5,after=2", "grid:keep=0.25,after=4"])
    assert plan_text(plan) == "fastv:keep=0.5,after=2+grid:keep=0.25,after=4"


@pytest.mark.parametrize(
    ("cuts", "legal", "says"),
    [
        ([CutSpec(12, "grid", 0.5)], ALL, "this model has 12 layers; choose after=0 to 11"),
        ([CutSpec(99, "grid", 0.5)], ALL, "this model has 12 layers"),
        ([CutSpec(3, "grid", 0.5)], [1, 2, 5, 6, 7, 9], "legal are 1-2, 5-7, 9"),
        ([CutSpec(3, "grid", 0.5)], [], "legal are none"),
        ([CutSpec(0.5, "grid", 0.5)], [], "cannot be cut between its layers"),
        (
            [CutSpec(6, "grid", 0.5), CutSpec(0.5, "fastv", 0.25)],
            ALL,
            "two cuts after 6 layers (grid:keep=0.5,after=6 and fastv:keep=0.25,after=6)",
        ),
    ],
)
def test_plans_a_model_cannot_run(cuts, legal, says):
    with pytest.raises(PlanError) as caught:
        settle(cuts, 12, legal)
    assert says in str(caught.value)


def test_place_e_is_always_legal():
    assert resolve([CutSpec(0, "grid", 0.5)], 12, [])[0].after == 0


@pytest.mark.parametrize(
    ("cuts", "text"), [([], "none"), ([4], "4"), ([1, 2, 3, 5], "1-3, 5"), ([3, 1, 2], "1-3")]
)
def test_format_cuts(cuts, text):
    assert format_cuts(cuts) == text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_predict", 0), ("temp", -0.1), ("temp", math.nan), ("temp", math.inf), ("top_k", -1),
        ("top_p", 0.0), ("top_p", 1.1), ("min_p", -0.1), ("min_p", 1.5), ("seed", -1),
        ("seed", 2**32), ("stop", ("",)),
    ],
)  # fmt: skip
def test_sampling_refuses(field, value):
    with pytest.raises(AtpError, match="stop text" if field == "stop" else field):
        SamplingConfig(**{field: value})


def test_sampling_defaults_are_greedy():
    assert SamplingConfig().temp == 0.0
    assert SamplingConfig(n_predict=1, temp=1.0, top_k=0, top_p=1.0, min_p=0.0).n_predict == 1


def left_half(tokens):
    return [int(i) for i, x in zip(tokens["index"], tokens["x"], strict=True) if x < 4]


def test_a_function_is_a_policy():
    cut = CutSpec(4, left_half)
    assert cut.name.endswith("test_plan.left_half")
    assert str(cut) == f"{cut.name}:after=4"
    assert plan_text(parse_plan([cut])) == str(cut)
    assert settle([CutSpec(0.5, left_half)], 8, range(1, 8))[0].after == 4


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: CutSpec(4, left_half, keep=0.5), "a function decides how much it keeps"),
        (lambda: CutSpec(4, left_half, needs="all"), "none, last_row, atp"),
        (lambda: CutSpec(0, left_half, needs="last_row"), "none before the first layer"),
        (lambda: CutSpec(4, "grid", needs="last_row"), "needs is for functions"),
        (lambda: CutSpec(4, 7), "unknown policy 7"),
    ],
)
def test_functions_that_cannot_be(make, why):
    with pytest.raises(PlanError, match=why):
        make()
