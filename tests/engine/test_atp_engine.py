"""Policy atp in the engine: the sidecar beside the model, what the report says, what is refused."""

import numpy as np
import pytest

import atp_cpp
from atp_cpp import _core as core
from atp_cpp.evaluation.evaluate import Question, evaluate, read_plans
from atp_cpp.sidecar.sidecar import fingerprint_from_gguf
from support.invariants import layer_mean
from support.random_sidecar import KEEP_ALL, random_sidecar
from support.rig import ARCHS

QUESTION = "<__media__>What is this?"
CUTS = {"gemma3": (4,)}


@pytest.fixture(scope="module")
def sidecar_file(tiny_model, tmp_path_factory):
    """`sidecar_file(arch, **fields) -> path` of a random sidecar of that tiny model."""

    def make(arch, **fields):
        known = {
            "arch": arch, "cuts": CUTS.get(arch, (2, 5)), "theta_r_bias": 0.1, "theta_s_bias": 0.8,
            "fingerprint": fingerprint_from_gguf(tiny_model(arch)),
        }  # fmt: skip
        folder = tmp_path_factory.mktemp("atp")
        return str(random_sidecar(3, **(known | fields)).write_gguf(folder / "atp.gguf"))

    return make


@pytest.fixture(scope="module")
def atp_engines(make_engine, sidecar_file):
    """`atp_engines(arch)`: one engine with a sidecar for each architecture."""
    made = {}

    def get(arch):
        if arch not in made:
            made[arch] = make_engine(arch, atp=sidecar_file(arch))
        return made[arch]

    yield get
    for engine in made.values():
        engine.close()


def caption(engine, images, prompt=QUESTION, budget=None, n_predict=6):
    return engine.generate(prompt, images, plan=engine.atp_plan(budget), n_predict=n_predict)


def same(a, b):
    """Two captions of one thing, times aside."""
    return (a.text, a.tokens, a.report.kept, a.report.thresholds, a.report.kept_spatial) == (
        b.text, b.tokens, b.report.kept, b.report.thresholds, b.report.kept_spatial,
    )  # fmt: skip


@pytest.mark.parametrize("arch", ARCHS)
def test_report(atp_engines, arch, pictures):
    engine = atp_engines(arch)
    cuts = list(CUTS.get(arch, (2, 5)))
    assert engine.info.atp_cuts == cuts
    assert [(cut.after, cut.policy) for cut in engine.atp_plan()] == [(c, "atp") for c in cuts]
    report = caption(engine, pictures[:1]).report
    n = report.n_image_tokens
    assert len(report.n_kept) == len(report.kept) == len(report.thresholds) == len(cuts)
    assert n > report.n_kept[0] >= report.n_kept[-1] > 0
    assert [len(kept) for kept in report.kept] == report.n_kept
    assert report.tokens_mean == pytest.approx(layer_mean(cuts, report.n_kept, n, 8))
    for (theta_r, theta_s, offset), kept, alone in zip(
        report.thresholds, report.kept, report.kept_spatial, strict=True
    ):
        assert (theta_r, theta_s) == pytest.approx(
            (1 / (1 + np.exp(-0.1)), 1 / (1 + np.exp(-0.8))), abs=1e-7
        )
        assert offset == 0.0
        assert set(alone) < set(kept)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_budget_is_met(atp_engines, arch, pictures):
    engine = atp_engines(arch)
    n = caption(engine, pictures[:1], n_predict=0).report.n_image_tokens
    for budget in (0.7, 0.9, 1.0):
        report = caption(engine, pictures[:1], budget=budget, n_predict=0).report
        assert budget * n - 1 < report.tokens_mean <= budget * n + 1e-9
    count = engine.generate(QUESTION, pictures[:1], plan=engine.atp_plan(round(0.8 * n)))
    assert round(0.8 * n) - 1 < count.report.tokens_mean <= round(0.8 * n)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_same_again_whatever_came_between(atp_engines, arch, pictures):
    engine = atp_engines(arch)
    first = caption(engine, pictures[:1])
    two = caption(engine, pictures[1:], prompt=QUESTION + "<__media__>And this?")
    assert len(two.report.grids) == 2
    n_first = two.report.grids[0][0] * two.report.grids[0][1]
    assert min(two.report.kept[-1]) < n_first <= max(two.report.kept[-1]), "both images live"
    engine.generate("No image at all.", [], plan=engine.atp_plan(0.75), n_predict=2)
    engine.generate(QUESTION, pictures[1:2], n_predict=2)
    assert same(caption(engine, pictures[:1]), first)
    assert not same(caption(engine, pictures[1:2]), first)


def test_text_alone(atp_engines):
    engine = atp_engines("llama")
    plain = engine.generate("No image at all.", [], n_predict=6)
    with_atp = engine.generate("No image at all.", [], plan=engine.atp_plan(0.5), n_predict=6)
    assert with_atp.tokens == plain.tokens
    report = with_atp.report
    assert (report.kept, report.n_kept, report.thresholds) == ([[], []], [0, 0], [])
    assert report.tokens_mean == 0.0


def test_thresholds_that_keep_everything_equal_no_policy(make_engine, sidecar_file, pictures):
    engine = make_engine("llama", atp=sidecar_file("llama", theta_r_bias=KEEP_ALL))
    plain = engine.generate(QUESTION, pictures[:1], n_predict=12)
    all_kept = caption(engine, pictures[:1], n_predict=12)
    assert all_kept.tokens == plain.tokens
    assert all_kept.report.tokens_mean == plain.report.tokens_mean == 64
    engine.close()


def test_without_a_sidecar(engines):
    engine = engines("llama")
    assert engine.info.atp_cuts == []
    with pytest.raises(core.PlanError, match=r"load its sidecar \(--atp FILE\)"):
        engine.atp_plan()


def test_a_sidecar_of_another_model_is_refused(make_engine, sidecar_file, tiny_model):
    with pytest.raises(core.ModelError, match="qwen2"):
        make_engine("llama", atp=sidecar_file("qwen2"))
    with pytest.raises(core.ModelError, match="no such file"):
        make_engine("llama", atp="there-is-none.gguf")
    with pytest.raises(core.ModelError, match="not a sidecar"):
        make_engine("llama", atp=str(tiny_model("llama")))


def test_a_cut_this_model_cannot_score_is_refused(make_engine, sidecar_file, pictures):
    engine = make_engine("gemma3", atp=sidecar_file("gemma3", cuts=(2, 4)))
    with pytest.raises(core.PlanError, match="layers 0 to 1 hold no full-attention layer"):
        caption(engine, pictures[:1])
    assert engine.generate(QUESTION, pictures[:1], n_predict=2).tokens
    engine.close()


def test_budgets_that_cannot_be_met(atp_engines, pictures):
    engine = atp_engines("llama")
    with pytest.raises(core.PlanError, match="cuts first after 2 of 8 layers, which alone cost"):
        engine.atp_plan(0.25)
    with pytest.raises(
        core.PlanError, match=r"the least possible is a mean of 16.75 \(0.2617 of them\)"
    ):
        caption(engine, pictures[:1], budget=16)
    assert caption(engine, pictures[:1], budget=17).report.n_kept == [1, 1]


def test_an_image_behind_the_question_is_refused(atp_engines, pictures):
    engine = atp_engines("llama")
    with pytest.raises(core.PlanError, match="needs text after the image"):
        caption(engine, pictures[:1], prompt="What is this?<__media__>")
    assert caption(engine, pictures[:1]).tokens


def test_a_plan_goes_with_the_object_it_came_from(make_engine, sidecar_file, pictures):
    """A plan holds the weights: closing the engine that made it takes nothing away."""
    first = make_engine("llama", atp=sidecar_file("llama"))
    plan = first.atp_plan()
    expected = first.generate(QUESTION, pictures[:1], plan=plan, n_predict=4)
    first.close()
    with pytest.raises(core.ModelError, match="closed"):
        first.atp_plan()
    second = make_engine("llama")
    assert same(second.generate(QUESTION, pictures[:1], plan=plan, n_predict=4), expected)
    second.close()


@pytest.fixture
def atp_captioner(tiny_files, tmp_path):
    """The real engine on a small random model with a sidecar, 64 image tokens an image."""
    model, mmproj = tiny_files
    path = random_sidecar(
        2, theta_r_bias=0.1, theta_s_bias=0.8, fingerprint=fingerprint_from_gguf(model)
    ).write_gguf(tmp_path / "atp.gguf")
    with atp_cpp.Captioner(model, mmproj=mmproj, atp=path, n_ctx=512, n_threads=1) as cap:
        yield cap


def test_a_budget_that_an_image_cannot_meet_costs_its_row_only(atp_captioner, scene):
    replies = evaluate(
        atp_captioner,
        [Question(scene.name, "What?", "this", "k")],
        read_plans(["atp:budget=16", "atp:budget=17"], atp_captioner),
        image_root=scene.parent,
        sampling=atp_cpp.SamplingConfig(n_predict=2),
        config_hash="",
    )
    low, enough = [row for row, _ in replies]
    assert "the least possible is a mean of 16.75" in low.error and low.n_kept == []
    assert enough.error == "" and enough.n_kept == [1, 1]


def test_captioner(atp_captioner, scene):
    cap = atp_captioner
    sampling = atp_cpp.SamplingConfig(n_predict=4)
    assert [cut.after for cut in cap.plan] == [2, 5]
    pruned = cap.caption(scene, sampling=sampling)
    assert 64 > pruned.report.n_kept[0] >= pruned.report.n_kept[1] > 0
    half = cap.caption(scene, policy="atp:budget=0.5", sampling=sampling)
    assert 31 < half.report.tokens_mean <= 32
    two = cap.caption([scene, scene], policy="atp:budget=50", sampling=sampling)
    assert two.report.n_image_tokens == 128 and 49 < two.report.tokens_mean <= 50
    assert cap.caption(scene, policy="none", sampling=sampling).report.tokens_mean == 64
