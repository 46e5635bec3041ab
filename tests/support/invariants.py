"""The laws of the engine, each stated once. Test modules call them on models, prompts and plans.

Every law runs what it says on a staged decoder and compares with plain `llama_decode` on the same
weights, or with NumPy. A law fails by AssertionError.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atp_cpp import _core as core
from support.policy_twin import choose, quota
from support.rig import Floats, Rig, dead_rows, live_rows, max_abs, nmse, steps
from support.tolerance import check


def uncut_plan(cuts: Sequence[int]) -> list[core.Cut]:
    """Stages without any pruning."""
    return [core.Cut(after, "none") for after in cuts]


def staged_equals_whole(
    rig: Rig,
    staged: core.Decoder,
    plain: core.Reference,
    seq: core.Sequence,
    cuts: Sequence[int],
    n_steps: int = 16,
) -> None:
    """Cutting a decoder into stages changes nothing: all prompt logits, and each decode step's.

    `plain` may be reused for other prompts; it watches nothing.
    """
    staged.remove(0)
    staged.set_plan(uncut_plan(cuts))
    tokens = steps(staged, n_steps)
    expected = plain.prefill(seq, all_logits=True)
    out = staged.prefill(seq, n_predict=n_steps, all_logits=True)
    assert expected.shape == (seq.n_rows, staged.n_vocab)
    error = max_abs(expected, out["logits"])
    for i, token in enumerate(tokens):
        expected = plain.decode(token, seq.n_pos + i)
        error = max(error, max_abs(expected, staged.decode([(0, token, seq.n_pos + i)])))
    check(error, rig.backend, "any", "staged = whole")


def no_prompt_reaches_the_next(
    rig: Rig, prompts: Sequence[core.Sequence], cuts: Sequence[int], n_steps: int = 3
) -> None:
    """Each of several prompts in one decoder, one after another, equals plain `llama_decode`.

    Of what one prompt leaves behind, in a KV cache or a recurrent state, the next sees nothing.
    """
    staged, plain = rig.staged(), rig.plain()
    for seq in prompts:
        staged_equals_whole(rig, staged, plain, seq, cuts, n_steps)


def masked(
    rig: Rig,
    seq: core.Sequence,
    plan: Sequence[core.Cut],
    kept: Sequence[Sequence[int]],
    n_ubatch: int,
) -> core.Reference:
    """Plain `llama_decode` in which, from each cut on, nobody sees the rows dropped there."""
    plain = rig.plain(n_ubatch=n_ubatch)
    for cut, alive in zip(plan, kept, strict=True):
        plain.hide(cut.after, dead_rows(seq, alive))
    return plain


def pruned_equals_masked(
    rig: Rig,
    staged: core.Decoder,
    seq: core.Sequence,
    plan: Sequence[core.Cut],
    n_steps: int = 6,
    n_ubatch: int = 64,
) -> list[list[int]]:
    """Dropping rows equals hiding them, at their original positions.

    A dropped row may be computed by llama.cpp, but no row sees it from the cut on; so the rows
    that live must have the same logits, and decoding goes on at the length before pruning.
    Text rows all live. Returns what was kept at each cut.
    """
    staged.remove(0)
    staged.set_plan(plan)
    out = staged.prefill(seq, n_predict=n_steps, all_logits=True)
    kept = out["kept"]
    rows = live_rows(seq, kept[-1])
    assert out["logits"].shape == (len(rows), staged.n_vocab), "text rows and survivors, no others"
    plain = masked(rig, seq, plan, kept, n_ubatch)
    expected = [plain.prefill(seq, all_logits=True)[rows]]
    measured = [out["logits"]]
    for i, token in enumerate(steps(staged, n_steps)):
        expected.append(plain.decode(token, seq.n_pos + i))
        measured.append(staged.decode([(0, token, seq.n_pos + i)]))
    prefill_error = nmse(expected[0], measured[0])
    check(prefill_error, rig.backend, rig.precision, "pruned = masked")
    decode_error = nmse(np.concatenate(expected[1:]), np.concatenate(measured[1:]))
    check(decode_error, rig.backend, rig.precision, "pruned = masked")
    return kept


def attention_of_last_row(
    rig: Rig,
    plain: core.Reference,
    seq: core.Sequence,
    il: int,
    visible: Sequence[int],
    n_batches: int,
) -> Floats:
    """softmax(q k^T / sqrt(d)) of the last prompt row in layer il, mean over heads, in NumPy.

    q and k are plain llama_decode's own, after RoPE; only the rows `visible` are seen.
    `n_batches`: runs of text and images in the prompt. Returns [n_rows], zero where not visible.
    """
    plain.capture([f"Qcur-{il}", f"Kcur-{il}"])
    plain.prefill(seq, all_logits=True)

    def rotated(name: str) -> Floats:
        # one name is given several times on the way to the attention, the last time after RoPE
        parts = plain.captured[f"{name}-{il}"]
        per_batch = len(parts) // n_batches
        return np.concatenate([a[0] for a in parts[per_batch - 1 :: per_batch]])

    q, k = rotated("Qcur"), rotated("Kcur")
    assert len(q) == len(k) == seq.n_rows
    n_head, head_dim = q.shape[1:]
    k = np.repeat(k, n_head // k.shape[1], axis=1).astype(np.float64)[list(visible)]
    scale = 1.0 if rig.arch == "phi3" else 1.0 / np.sqrt(head_dim)  # phi3 scales q itself
    logits = scale * np.einsum("hd,rhd->hr", q[-1].astype(np.float64), k)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = np.zeros(seq.n_rows, dtype=np.float32)
    scores[list(visible)] = (p / p.sum(axis=1, keepdims=True)).mean(axis=0)
    return scores


def softmax_of_last_row(plain: core.Reference, seq: core.Sequence, il: int) -> Floats:
    """The same from llama.cpp's own softmax (flash attention off). Returns [n_rows]."""
    plain.capture([f"kq_soft_max-{il}"])
    plain.prefill(seq, all_logits=True)
    last_batch = plain.captured[f"kq_soft_max-{il}"][-1][0]  # [n_head, n_rows of the batch, n_kv]
    return last_batch[:, -1, : seq.n_rows].mean(axis=0)


def score_layer(rig: Rig, after: int) -> int:
    """The last full-attention layer before a cut; gemma3 here has one in four."""
    return (after // 4 * 4 if rig.arch == "gemma3" else after) - 1


def scores_equal_numpy(
    rig: Rig,
    staged: core.Decoder,
    seq: core.Sequence,
    plan: Sequence[core.Cut],
    n_batches: int,
) -> list[list[int]]:
    """The score of an image token is what the last prompt row attends to it, mean over heads.

    Checked at every cut of `plan`, where earlier cuts hide rows; and the keep list is what the
    policy's twin says on those very scores. Returns what was kept at each cut.
    """
    staged.remove(0)
    staged.set_plan(plan)
    out = staged.prefill(seq)
    alive = list(range(seq.n_image_tokens))
    plain = rig.plain(n_ubatch=512)
    for cut, scores, kept in zip(plan, out["scores"], out["kept"], strict=True):
        assert len(scores) == len(alive)
        il = score_layer(rig, cut.after)
        visible = live_rows(seq, alive)
        expected = attention_of_last_row(rig, plain, seq, il, visible, n_batches)
        rows = [seq.image_rows[i] for i in alive]
        check(nmse(expected[rows], scores), rig.backend, rig.precision, "scores = NumPy")
        if rig.options.get("flash_attn") == "off":
            own = softmax_of_last_row(plain, seq, il)
            check(nmse(own[rows], scores), rig.backend, rig.precision, "scores = softmax")
        assert min(scores) >= 0.0
        assert sum(scores) < 1.0, "the text takes its share of the attention"
        plain.hide(cut.after, dead_rows(seq, kept))
        alive = kept
    return out["kept"]


def same_policy(
    name: str,
    score: Sequence[float],
    live: Sequence[int],
    grids: Sequence[tuple[int, int]],
    keep: float,
    seed: int,
) -> list[int]:
    """A policy chooses what its NumPy twin chooses, within its quota, and no image dies."""
    arguments = {"score": score, "live": live, "grids": grids, "keep": keep, "seed": seed}
    kept = core.run_policy(name, **arguments)
    assert kept == choose(name, **arguments)
    assert set(kept) <= set(live)
    assert kept == sorted(set(kept))
    first = 0
    for rows, cols in grids:
        mine = range(first, first + rows * cols)
        n_live = sum(i in mine for i in live)
        n_kept = sum(i in mine for i in kept)
        if name == "none":
            assert n_kept == n_live
        else:
            assert n_kept == min(n_live, quota(keep, rows * cols))
        assert n_kept >= min(n_live, 1)
        first += rows * cols
    return kept


def run_once(staged: core.Decoder, seq: core.Sequence, n_steps: int = 4) -> Floats:
    """All logits of a prompt and a few steps, [n_live + n_steps, n_vocab]; the sequence is left."""
    logits = [staged.prefill(seq, n_predict=n_steps, all_logits=True)["logits"]]
    for i, token in enumerate(steps(staged, n_steps)):
        logits.append(staged.decode([(0, token, seq.n_pos + i)]))
    return np.concatenate(logits)


def nothing_leaks(
    rig: Rig,
    staged: core.Decoder,
    plan: Sequence[core.Cut],
    before: core.Sequence,
    after: core.Sequence,
) -> None:
    """Nothing of what was seen before is left: a used decoder equals a fresh one, bit for bit."""
    fresh = rig.staged()
    fresh.set_plan(plan)
    expected = run_once(fresh, after)
    staged.remove(0)
    staged.set_plan(plan)
    first = run_once(staged, before)
    assert not np.array_equal(first[-1], expected[-1]), "the two prompts must differ"
    assert np.array_equal(run_once(staged, after), expected)


def together_equals_alone(
    rig: Rig, plan: Sequence[core.Cut], prompts: Sequence[core.Sequence], n_steps: int = 8
) -> None:
    """Sequences that live in the stage caches at once decode together as each does alone."""
    both = rig.staged(n_seq_max=len(prompts))
    both.set_plan(plan)
    alone = []
    for seq_id, seq in enumerate(prompts):
        single = rig.staged()
        single.set_plan(plan)
        expected = single.prefill(seq, n_predict=n_steps, all_logits=True)
        measured = both.prefill(seq, seq_id=seq_id, n_predict=n_steps, all_logits=True)
        assert measured["kept"] == expected["kept"]
        error = nmse(expected["logits"], measured["logits"])
        check(error, rig.backend, rig.precision, "together = alone")
        alone.append(single)
    tokens = [steps(both, n_steps, seed=s) for s in range(len(prompts))]
    for i in range(n_steps):
        rows = [(s, tokens[s][i], seq.n_pos + i) for s, seq in enumerate(prompts)]
        measured = both.decode(rows)
        expected = np.concatenate(
            [single.decode([(0, *row[1:])]) for single, row in zip(alone, rows, strict=True)]
        )
        check(nmse(expected, measured), rig.backend, rig.precision, "together = alone")


def layer_mean(
    cuts: Sequence[int], n_kept: Sequence[int], n_image_tokens: int, n_layer: int
) -> float:
    """Image tokens alive in a layer, averaged over the layers one by one."""
    alive = [n_image_tokens] * n_layer
    for after, n in zip(cuts, n_kept, strict=True):
        alive[after:] = [n] * (n_layer - after)
    return sum(alive) / n_layer
