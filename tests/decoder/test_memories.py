"""Decoders whose layers remember otherwise: recurrent states, shared KV; and odd heads."""

import numpy as np
import pytest

import make_tiny_model
from atp_cpp import _core as core
from support.invariants import no_prompt_reaches_the_next, nothing_leaks, together_equals_alone
from support.rig import PRECISIONS, Rig, live_rows, max_abs, nmse, prompt, steps
from support.tolerance import check
from tiny_models import ODD_ARCHS

N_LAYER = 8
LEGAL = {arch: list(range(1, N_LAYER)) for arch in ODD_ARCHS} | {"gemma4": [1, 2, 3]}


def two_prompts(rig, decoder):
    return [
        prompt(rig, decoder, 7, (5, 5), 9, seed=1),
        prompt(rig, decoder, 4, (4, 4), 6, seed=2),
    ]


@pytest.mark.parametrize("arch", ODD_ARCHS)
def test_the_cuts_that_change_nothing_are_legal(make_rig, arch):
    assert make_rig(arch, "f32").staged().legal_cuts == LEGAL[arch]


@pytest.mark.parametrize(
    ("arch", "cuts"),
    [(arch, cuts) for arch in ODD_ARCHS for cuts in [[c] for c in LEGAL[arch]] + [LEGAL[arch]]],
    ids=str,
)
def test_a_prompt_after_another_equals_the_whole_model(make_rig, arch, cuts):
    """A cut before a recurrent layer (granitehybrid: 2, 4, 6) leaves its state to its own stage."""
    rig = make_rig(arch, "f32")
    no_prompt_reaches_the_next(rig, two_prompts(rig, rig.staged()), cuts)


@pytest.mark.parametrize("cut", range(1, N_LAYER))
def test_nothing_leaks_through_a_recurrent_state(make_rig, cut):
    rig = make_rig("granitehybrid")
    staged = rig.staged()
    first, second = two_prompts(rig, staged)
    nothing_leaks(rig, staged, [core.Cut(cut, "grid", 0.3)], first, second)


@pytest.mark.parametrize("cut", [2, 3, 6])
def test_recurrent_states_of_sequences_together_equal_each_alone(make_rig, cut):
    rig = make_rig("granitehybrid", "f32")
    together_equals_alone(rig, [core.Cut(cut, "none")], two_prompts(rig, rig.staged()))


@pytest.mark.parametrize("cut", [4, 5, 6, 7])
def test_a_cut_between_layers_that_share_their_kv_is_refused(make_rig, cut):
    """Layers 5 and 6 read the KV of layer 3, layer 7 that of layer 4."""
    reason = rf"cut after {cut} layers.*cannot be cut there.*would read the memory of layer [34] "
    with pytest.raises(core.PlanError, match=reason + r".*share it\); legal are 1, 2, 3"):
        make_rig("gemma4").staged().set_plan([core.Cut(cut, "none")])


def test_without_shared_kv_every_cut_is_legal(tiny_model):
    path = tiny_model("gemma4", n_kv_shared=0)
    rig = Rig(path, "gemma4", PRECISIONS["f32"])
    assert rig.staged().legal_cuts == list(range(1, N_LAYER))
    no_prompt_reaches_the_next(rig, two_prompts(rig, rig.staged()), [5])


@pytest.mark.parametrize("cut", [1, 3, 7])
@pytest.mark.parametrize("arch", ODD_ARCHS)
def test_the_self_test_finds_no_difference(make_rig, arch, cut):
    if cut in LEGAL[arch]:
        assert make_rig(arch, "f32").staged().self_test([cut]) == 0.0


@pytest.mark.parametrize("arch", ODD_ARCHS)
def test_policies_run_on_them(make_engine, pictures, arch):
    engine = make_engine(arch, layout="mlp")
    assert engine.info.can_prune, engine.info.why_not
    assert engine.info.legal_cuts == LEGAL[arch]
    plan = [core.Cut(2, "grid", 0.25)]
    made = engine.generate("a <__media__> b", pictures[:1], plan=plan, n_predict=4)
    n_all = made.report.n_image_tokens
    assert made.report.n_kept == [round(n_all * 0.25)]
    engine.close()


# chameleon's head forbids these tokens
ALLOWED = [*range(4), *range(8196, 8196 + 64)]


@pytest.mark.parametrize("n_ubatch", [3, 7, 64])
def test_a_head_that_needs_rows_is_given_some_in_every_ubatch(make_rig, n_ubatch):
    rig = make_rig("chameleon", "f32", n_ubatch=n_ubatch)
    staged = rig.staged()
    seq = prompt(rig, staged, 20)
    staged.set_plan([core.Cut(3, "none")])
    expected = rig.plain(n_ubatch=64).prefill(seq)[-1, ALLOWED]
    measured = staged.prefill(seq)["logits"]
    assert measured.shape == (1, staged.n_vocab)
    check(nmse(expected, measured[0, ALLOWED]), "cpu", "f32", "short ubatches = long")


def test_the_last_row_is_read_where_the_graph_gives_all(make_rig):
    """llama_decode, asked for the last row of cogvlm alone, answers with the first one."""
    rig = make_rig("cogvlm", "f32")
    staged, plain = rig.staged(), rig.plain()
    seq = prompt(rig, staged, 20)
    rows = plain.prefill(seq, all_logits=True)
    step = plain.decode(400, seq.n_pos)
    staged.set_plan([core.Cut(3, "none")])
    last = staged.prefill(seq, n_predict=1)["logits"]
    assert max_abs(rows[-1:], last) == 0.0
    assert max_abs(step, staged.decode([(0, 400, seq.n_pos)])) == 0.0
    assert max_abs(rows[:1], last) > 0.1, "the first row is another"


@pytest.fixture(scope="module")
def tail_model(tmp_path_factory):
    """`tail_model(after) -> Path`: the layers of the tiny granitehybrid from `after` on, alone."""

    def make(after):
        path = tmp_path_factory.mktemp("tail") / f"after-{after}.gguf"
        make_tiny_model.write_tail(path, "granitehybrid", after=after)
        return path

    return make


@pytest.mark.parametrize("cut", [2, 4, 6])
def test_a_pruned_hybrid_runs_its_later_layers_over_the_survivors_alone(make_rig, tail_model, cut):
    """The twin: the hidden states of the survivors, through a model of the later layers only.

    Up to the cut every layer has seen every row. Behind it, attention sees the survivors, and a
    recurrent state runs over them as if the other rows had never been. The recurrent layers
    before the cut do hold what they took from dropped rows, so hiding those from all attention
    of the whole model gives something else.
    """
    rig = make_rig("granitehybrid", "f32")
    staged, plain = rig.staged(), rig.plain(n_ubatch=512)
    seq = prompt(rig, staged, 5, (5, 5), 7)
    staged.set_plan([core.Cut(cut, "random", 0.3, seed=3)])
    out = staged.prefill(seq, n_predict=4, all_logits=True)
    rows = live_rows(seq, out["kept"][0])

    plain.capture([f"l_out-{cut - 1}"])
    plain.prefill(seq, all_logits=True)
    tokens = steps(staged, 4)
    for i, token in enumerate(tokens):
        plain.decode(token, seq.n_pos + i)
    hidden = np.concatenate(
        [part.reshape(-1, staged.n_embd_inp) for part in plain.captured[f"l_out-{cut - 1}"]]
    )
    assert len(hidden) == seq.n_rows + len(tokens)

    alive = hidden[[*rows, *range(seq.n_rows, len(hidden))]]
    tail = core.Sequence(staged.n_embd_inp)
    tail.add_image(np.ascontiguousarray(alive), grid=(1, len(alive)))
    expected = (
        Rig(tail_model(cut), "granitehybrid", rig.options).plain().prefill(tail, all_logits=True)
    )
    measured = [out["logits"]]
    for i, token in enumerate(tokens):
        measured.append(staged.decode([(0, token, seq.n_pos + i)]))
    check(nmse(expected, np.concatenate(measured)), "cpu", "f32", "pruned = tail of survivors")

    whole = rig.plain(n_ubatch=512)
    whole.hide(cut, sorted(set(range(seq.n_rows)) - set(rows)))
    masked = whole.prefill(seq, all_logits=True)[rows]
    assert nmse(masked, out["logits"]) > 1e-4, "states behind the cut skip the dropped rows"
