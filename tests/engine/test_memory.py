"""Memory: an engine that is closed, or fails, gives back what it took."""

import numpy as np
import pytest

from atp_cpp import _core as core
from support.resident import growth, needs_proc

pytestmark = needs_proc


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen3vl"])
def test_engines_made_and_closed_30_times(make_engine, pictures, arch):
    plan = [core.Cut(2, "grid", 0.5), core.Cut(4, "fastv", 0.2)]

    def life():
        engine = make_engine(arch)
        marker = engine.info.media_marker
        engine.generate(marker + " a question", pictures[:1], plan=plan, n_predict=4)
        size = engine.info.size_bytes
        engine.close()
        return size

    assert life() > 4e6, "a leaked model would show"
    assert growth(life) < 150_000


def test_engines_that_are_dropped_without_close(make_engine):
    assert growth(lambda: make_engine("llama")) < 150_000


def test_models_that_fail_to_load(tiny_model, tiny_mmproj, tmp_path):
    whole = tiny_model("llama").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: len(whole) - 1000])
    # a projector of another width is left out: libmtmd itself keeps what it had loaded of it
    calls = [(cut,), (tiny_model("llama"), cut), (tiny_mmproj("mlp"),)]

    def fail():
        for paths in calls:
            with pytest.raises(core.ModelError):
                core.Engine(*map(str, paths))

    assert growth(fail) < 150_000


def test_captions_one_after_another(make_engine, pictures):
    engine = make_engine("llama")
    marker = engine.info.media_marker
    rng = np.random.default_rng(1)

    def caption():
        cuts = sorted(int(c) for c in rng.choice(range(8), size=2, replace=False))
        plan = [core.Cut(after, "grid", float(rng.uniform(0.1, 1.0))) for after in cuts]
        prompt = marker + " a" * int(rng.integers(1, 60))
        engine.generate(prompt, pictures[:1], plan=plan, n_predict=4)

    assert growth(caption, n_warm_up=20, n=20) < 20_000
    engine.close()


def test_captions_that_fail_in_the_middle(make_engine, pictures):
    engine = make_engine("llama")
    marker = engine.info.media_marker

    def broken(tokens):
        raise ValueError("in the middle")

    def fail():
        plan = [core.Cut(2, "grid", 0.5), core.Cut(5, broken)]
        with pytest.raises(ValueError, match="in the middle"):
            engine.generate(marker + " a question", pictures[:1], plan=plan)

    assert growth(fail, n_warm_up=10, n=20) < 20_000
    engine.close()
