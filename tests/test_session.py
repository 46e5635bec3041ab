"""A session: made of parts that are passed in, used by batch and chat without a captioner."""

import inspect
from pathlib import Path

import pytest

from atp_cpp import Captioner, CutSpec, SamplingConfig
from atp_cpp.batch.run.many import start_run
from atp_cpp.chat.completion import ChatSession
from atp_cpp.errors import AtpError, ModelError, PlanError
from atp_cpp.models.files import ModelFiles
from atp_cpp.options.load import LoadOptions
from atp_cpp.session import Parts, Session, first_plan
from support.fake_batch_engine import FakeBatchEngine
from support.fake_engine import FakeEngine
from support.fake_runs import picture, words

FILES = ModelFiles(Path("folder/model.gguf"), Path("mmproj.gguf"))


def session_of(engine, plan=(), options=None, kind=Session, **parts):
    """A session without a model, and the engine it made."""
    made = engine.fresh()
    fakes = {"image_spec_of": lambda mmproj: None, "note_pair": lambda *files: None}
    parts = Parts(made, **({"fingerprint": str} | fakes | parts))
    return kind(FILES, plan, options, parts=parts), made.made


def test_a_run_needs_a_session_only():
    session, (engine,) = session_of(FakeBatchEngine)
    many = {"batch_size": 2, "kv_budget": None, "embeddings": None, "n_load_threads": 0}
    rows = start_run(
        session, [picture(10), picture(20)], "What?", plan=(), sampling=SamplingConfig(),
        on_error="record", **many,
    )  # fmt: skip
    assert [row.caption for row in rows] == [words(10, "What?"), words(20, "What?")]
    assert engine.live == {}


def test_a_chat_needs_a_session_only():
    session, (engine,) = session_of(FakeEngine, (CutSpec(2, "grid", 0.5),), kind=ChatSession)
    hello = [{"role": "user", "content": "Hello?"}]
    out = session.create_chat_completion(hello, max_tokens=2, seed=5)
    assert out["choices"][0]["message"]["content"] == "A red"
    assert out["model"] == "model.gguf"
    (call,) = engine.calls
    assert (call["n_predict"], call["seed"]) == (2, 5)
    assert call["plan"] == [(2, "grid", 0.5, 0)]


def test_options_reach_the_engine_and_the_hash():
    options = LoadOptions(n_ctx=512, type_k="q8_0")
    session, (engine,) = session_of(FakeEngine, options=options)
    assert engine.options == options.engine_options()
    other, _ = session_of(FakeEngine, options=LoadOptions(type_k="q8_0"))
    assert session.config_hash() == other.config_hash(), "the context's size changes no caption"
    plain, _ = session_of(FakeEngine)
    assert session.config_hash() != plain.config_hash()
    retrained, _ = session_of(FakeEngine, options=options, fingerprint=lambda path: f"{path} 2")
    assert session.config_hash() != retrained.config_hash()


def refused(*files):
    raise ModelError("no rule")


def test_a_projector_that_is_refused_never_meets_the_engine():
    """libmtmd ends the process on some damaged projectors that our checks refuse."""
    kind = FakeEngine.fresh()
    with pytest.raises(ModelError, match="no rule"):
        Session(FILES, parts=Parts(kind, image_spec_of=refused))
    assert kind.made == []


def test_what_a_failed_load_made_is_closed():
    kind = FakeEngine.fresh()
    with pytest.raises(ModelError, match="no rule"):
        Session(FILES, parts=Parts(kind, image_spec_of=lambda path: None, note_pair=refused))
    assert kind.made[0].closed


def test_a_run_and_a_caption_exclude_each_other():
    session, _ = session_of(FakeBatchEngine)
    with session.open_batch(()):
        with pytest.raises(AtpError, match="open"), session.open_batch(()):
            pass
        with pytest.raises(AtpError, match="caption_many open"):
            session.caption_pixels([picture(1)], "What?", plan=())
    assert session.caption_pixels([picture(1)], "What?", plan=()).text


@pytest.mark.parametrize(
    ("policy", "budget", "atp", "plan"),
    [
        (None, None, None, ()),
        (None, None, Path("a.gguf"), (CutSpec(0, "atp"),)),
        ("none", None, Path("a.gguf"), (CutSpec(0, "none"),)),
        (None, 0.5, Path("a.gguf"), (CutSpec(0, "atp", budget=0.5),)),
        ("grid:after=2", None, Path("a.gguf"), (CutSpec(2, "grid", 0.5),)),
    ],
)
def test_the_first_plan(policy, budget, atp, plan):
    assert first_plan(policy, budget, atp) == plan


def test_atp_without_a_sidecar_is_refused_before_a_load():
    with pytest.raises(PlanError, match="needs a sidecar"):
        first_plan("atp", None, None)


def test_load_options_are_the_captioners():
    """Names and defaults stand in both; neither may drift."""
    options = {f: getattr(LoadOptions(), f) for f in LoadOptions.__dataclass_fields__}
    for call in (Captioner.__init__, Captioner.from_pretrained):
        given = inspect.signature(call).parameters
        assert {name: given[name].default for name in options} == options
