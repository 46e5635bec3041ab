"""When the self-test runs: at load, and once for each set of cuts, before a plan with it runs."""

import gguf
import numpy as np
import pytest

import make_tiny_model
from atp_cpp import _core as core

CUTS = [core.Cut(0, "grid", 0.9), core.Cut(2, "grid", 0.5), core.Cut(5, "random", 0.2)]


def caption(engine, images, plan):
    made = engine.generate("<__media__> what is it?", images, plan=plan, n_predict=4)
    return made.tokens, made.report.kept


def test_at_load_a_cut_in_the_middle_is_tested(make_engine):
    engine = make_engine("llama")
    assert engine.tested == {(4,): ""}
    assert engine.info.can_prune
    assert engine.info.legal_cuts == list(range(1, 8))


def test_the_cuts_of_a_plan_are_tested_together_before_it_runs(make_engine, pictures):
    engine = make_engine("llama")
    first = caption(engine, pictures[:1], CUTS)
    assert engine.tested == {(4,): "", (2, 5): ""}, "a cut at 0 makes no stage"
    assert caption(engine, pictures[:1], CUTS) == first
    engine.set_plan([core.Cut(2, "fastv", 0.5), core.Cut(5, "grid", 0.3)])
    assert engine.tested == {(4,): "", (2, 5): ""}, "other policies at the same cuts"
    engine.set_plan([core.Cut(3, "grid", 0.5)])
    assert engine.tested == {(4,): "", (2, 5): "", (3,): ""}


def test_the_test_changes_no_caption(make_engine, pictures):
    tested = caption(make_engine("llama"), pictures[:1], CUTS)
    engine = make_engine("llama", self_test=False)
    assert caption(engine, pictures[:1], CUTS) == tested
    assert engine.tested == {}


def test_captions_together_survive_the_test_of_their_plan(make_engine, pictures):
    engine = make_engine("llama")
    plan = [core.Cut(3, "grid", 0.5)]
    alone, _ = caption(engine, pictures[:1], plan)
    engine.set_plan([core.Cut(6, "grid", 0.5)])
    engine.set_plan(plan)
    engine.reserve([256, 256], 2)
    seq = engine.encode("<__media__> what is it?", pictures[:1])
    engine.start(seq, n_predict=4)
    with pytest.raises(core.StageError, match="the plan cannot change while 1 captions are under"):
        engine.set_plan([core.Cut(2, "grid", 0.5)])
    assert (2,) not in engine.tested, "nothing is tested while captions are under way"
    ended = []
    while engine.n_live:
        ended += engine.step()
    assert [result.tokens for _, result in ended] == [alone]


def test_a_plan_that_cannot_be_is_refused_before_it_is_tested(make_engine):
    engine = make_engine("llama")
    with pytest.raises(core.PlanError, match="this model has 8 layers"):
        engine.set_plan([core.Cut(8, "grid", 0.5)])
    assert engine.tested == {(4,): ""}


def test_a_row_that_is_no_number_fails_the_test(tmp_path):
    """A NaN is no equality, and all three other cuts are tried."""
    path = tmp_path / "nan.gguf"
    make_tiny_model.write_decoder(path, "llama")
    reader = gguf.GGUFReader(path, "r+")
    weights = {t.name: t.data for t in reader.tensors}
    weights["blk.6.ffn_down.weight"][:] = np.nan
    reader.data.flush()
    del reader
    engine = core.Engine(str(path), n_ctx=128, n_ubatch=32, n_threads=1)
    assert not engine.info.can_prune
    assert "other logits than llama.cpp's (NMSE" in engine.info.why_not
    assert len(engine.tested) == 4, "the middle, and three others"
    assert all(engine.tested.values())
    with pytest.raises(core.PlanError, match="runs unstaged only: cut after 4 layers"):
        engine.set_plan([core.Cut(2, "grid", 0.5)])
