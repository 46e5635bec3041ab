"""Captioner: what reaches the engine, what comes back, who frees what; then the real engine."""

import threading
import time

import numpy as np
import pytest
from PIL import Image

import atp_cpp
from atp_cpp import Captioner, CutSpec, SamplingConfig
from atp_cpp.errors import AtpError, ImageError, ModelError, PlanError, StageError
from atp_cpp.models import files as model_files
from support.fake_engine import FakeEngine


def make(engine, **options):
    cap = Captioner("model.gguf", mmproj="mmproj.gguf", **options)
    return cap, engine.made[0]


# ---- with a fake engine


def test_options_reach_the_engine(fake_engine):
    _, engine = make(
        fake_engine(), n_gpu_layers=0, n_ctx=512, n_ubatch=64, n_threads=3, n_threads_encode=2,
        flash_attn="off", type_k="f32", type_v="q8_0", self_test=False,
    )  # fmt: skip
    assert (engine.model, engine.mmproj) == ("model.gguf", "mmproj.gguf")
    assert engine.options == {
        "n_gpu_layers": 0, "n_ctx": 512, "n_ubatch": 64, "n_threads": 3, "n_threads_encode": 2,
        "flash_attn": "off", "type_k": "f32", "type_v": "q8_0", "self_test": False,
    }  # fmt: skip


def test_every_engine_option_is_offered(fake_engine):
    """Nothing the engine takes is left out."""
    import ast
    from pathlib import Path

    tree = ast.parse(Path(atp_cpp.__file__).with_name("_core.pyi").read_text(encoding="utf-8"))
    (engine,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Engine")
    constructor = engine.body[0]
    _, made = make(fake_engine())
    assert {a.arg for a in constructor.args.kwonlyargs} == set(made.options)


def test_a_caption_end_to_end(fake_engine, scene):
    cap, engine = make(fake_engine(), policy="fastv:keep=0.25,after=2")
    caption = cap.caption(scene)
    (call,) = engine.calls
    assert call["prompt"] == "USER: <__media__>\nDescribe the image. ASSISTANT:"
    assert call["plan"] == [(2, "fastv", 0.25, 0)]
    assert (call["n_predict"], call["temp"], call["stop"]) == (128, 0.0, [])
    np.testing.assert_array_equal(call["images"][0], np.asarray(Image.open(scene)))
    assert caption.text == "A red circle."  # the leading space of the first token is dropped
    assert caption.finish_reason == "stop"
    assert caption.report.n_kept == [4]
    assert caption.plan == (CutSpec(2, "fastv", 0.25),)
    assert caption.t_load > 0
    with pytest.raises(AttributeError):
        caption.text = "x"


def test_sampling_reaches_the_engine(fake_engine, scene):
    cap, engine = make(fake_engine())
    draw = SamplingConfig(
        n_predict=3, temp=0.7, top_k=5, top_p=0.8, min_p=0.1, seed=11, stop=("\n", "###")
    )
    caption = cap.caption(scene, "Why?", sampling=draw)
    (call,) = engine.calls
    names = ("n_predict", "temp", "top_k", "top_p", "min_p", "seed", "stop")
    assert [call[n] for n in names] == [3, 0.7, 5, 0.8, 0.1, 11, ["\n", "###"]]
    assert caption.finish_reason == "length"


def test_several_images_in_one_prompt(fake_engine, scene, pixels):
    cap, engine = make(fake_engine())
    cap.caption([scene, pixels, scene.read_bytes()], "Compare.")
    (call,) = engine.calls
    assert call["prompt"].count("<__media__>") == 3
    assert [image.shape for image in call["images"]] == [(40, 60, 3)] * 3
    np.testing.assert_array_equal(call["images"][1], pixels)


def test_policy_of_a_call_goes_before_the_captioners(fake_engine, scene):
    cap, engine = make(fake_engine(), policy="fastv:keep=0.25,after=2")
    cap.caption(scene, policy="none")
    cap.caption(scene, policy=["grid:keep=0.5,after=0.5", "random:after=1,seed=4"])
    cap.caption(scene)
    plans = [call["plan"] for call in engine.calls]
    assert plans[0] == []
    assert plans[1] == [(1, "random", 0.5, 4), (4, "grid", 0.5, 0)]
    assert plans[2] == [(2, "fastv", 0.25, 0)]


def test_on_token_sees_pieces_and_can_stop(fake_engine, scene):
    cap, _ = make(fake_engine())
    seen = []

    def two(piece):
        seen.append(piece)
        return len(seen) < 2

    caption = cap.caption(scene, on_token=two)
    assert seen == [" A", " red"]
    assert (caption.text, caption.finish_reason) == ("A red", "cancelled")


def test_close_frees_once_and_forbids_use(fake_engine, scene):
    with Captioner("m.gguf", mmproj="p.gguf", policy=None) if fake_engine() else None as cap:
        engine = cap._engine
    assert engine.closed
    cap.close()
    assert cap.info.arch == "fake"
    with pytest.raises(AtpError, match="closed"):
        cap.caption(scene)


@pytest.mark.parametrize(
    ("info", "options", "error", "says"),
    [
        ({"has_vision": False}, {}, ModelError, "holds no vision encoder"),
        ({}, {"policy": "fastv:after=99"}, PlanError, "this model has 8 layers"),
        ({"chat_template": "{% if %}"}, {}, ModelError, "not valid Jinja"),
        (
            {"can_prune": False, "why_not": "it is looped"},
            {"policy": "fastv"},
            PlanError,
            "m.gguf (fake) cannot be pruned: it is looped",
        ),
    ],
)
def test_an_engine_that_was_made_is_closed_when_the_rest_fails(
    fake_engine, info, options, error, says
):
    engine = fake_engine(info=info)
    with pytest.raises(error) as caught:
        Captioner("m.gguf", mmproj="p.gguf", **options)
    assert says in str(caught.value)
    assert engine.made[0].closed


def test_a_model_that_cannot_be_pruned_still_captions(fake_engine, scene):
    fake_engine(info={"can_prune": False, "why_not": "it is looped", "legal_cuts": ()})
    with Captioner("m.gguf", mmproj="p.gguf") as cap:
        assert cap.caption(scene, policy="none").text == "A red circle."
        with pytest.raises(PlanError):
            cap.caption(scene, policy="grid:after=1")


def test_bad_policy_is_found_before_a_model_is_loaded(fake_engine):
    engine = fake_engine()
    with pytest.raises(PlanError, match="unknown policy"):
        Captioner("m.gguf", mmproj="p.gguf", policy="fast")
    assert engine.made == []


def test_bad_image_never_reaches_the_engine(fake_engine, tmp_path):
    cap, engine = make(fake_engine())
    with pytest.raises(ImageError, match="no such file"):
        cap.caption(tmp_path / "none.png")
    with pytest.raises(ImageError, match="empty list"):
        cap.caption([])
    assert engine.calls == []


def test_a_model_that_is_not_there_is_said_before_its_projector(tmp_path):
    with pytest.raises(ModelError, match=r"nosuch.gguf: no such file; check the path"):
        Captioner(tmp_path / "nosuch.gguf")
    (tmp_path / "is.gguf").touch()
    with pytest.raises(ModelError, match="a text model sees only with its vision projector"):
        Captioner(tmp_path / "is.gguf")


def test_model_and_mmproj_belong_together(fake_engine, tmp_path):
    fake_engine()
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ModelError, match="mmproj"):
        Captioner(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match="needs its text model"):
        Captioner(mmproj="p.gguf")


def test_without_a_model_it_is_the_demos(fake_engine, monkeypatch, tmp_path):
    monkeypatch.setattr(model_files, "DEMO_DIR", tmp_path)
    engine = fake_engine()
    with pytest.raises(ModelError, match="no demo model"):
        Captioner()
    (tmp_path / "atp-demo.gguf").touch()
    (tmp_path / "mmproj-atp-demo.gguf").touch()
    with Captioner() as cap:
        assert engine.made[0].model == str(tmp_path / "atp-demo.gguf")
        assert cap.mmproj == tmp_path / "mmproj-atp-demo.gguf"


def test_threads_take_turns(fake_engine, pixels, monkeypatch):
    inside = threading.Lock()
    real = FakeEngine.generate

    def alone(self, *args, **options):
        assert inside.acquire(blocking=False), "two calls in the engine at once"
        try:
            time.sleep(0.001)  # lets the other threads try
            return real(self, *args, **options)
        finally:
            inside.release()

    monkeypatch.setattr(FakeEngine, "generate", alone)
    cap, engine = make(fake_engine())
    failures = []

    def work():
        try:
            for _ in range(20):
                cap.caption(pixels)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(engine.calls) == 80


def test_public_names():
    for name in atp_cpp.__all__:
        assert getattr(atp_cpp, name) is not None
    for error in (ImageError, ModelError, PlanError, StageError):
        assert issubclass(error, AtpError)
