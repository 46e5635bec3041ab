"""The ruler itself: plain llama_decode, with rows hidden and tensors captured."""

import numpy as np
import pytest

from atp_cpp import _core as core
from support.rig import max_abs, nmse, prompt
from support.tolerance import check


def test_watching_changes_nothing(make_rig, arch):
    rig = make_rig(arch)
    seq = prompt(rig, rig.staged(), 5, (8, 8), 11)
    plain, watched = rig.plain(), rig.plain()
    watched.hide(2, [])
    watched.capture(["kq_soft_max-3", "l_out-3"])
    expected = plain.prefill(seq, all_logits=True)
    assert max_abs(expected, watched.prefill(seq, all_logits=True)) == 0.0
    assert max_abs(plain.decode(300, seq.n_pos), watched.decode(300, seq.n_pos)) == 0.0


def test_logits_of_the_last_row_are_those_of_all_rows(make_rig, arch):
    rig = make_rig(arch)
    plain = rig.plain()
    seq = prompt(rig, rig.staged(), 5, (4, 4), 11)
    every = plain.prefill(seq, all_logits=True)
    assert every.shape == (32, 512)
    error = nmse(every[-1:], plain.prefill(seq))
    check(error, rig.backend, rig.precision, "last row = all rows")


def test_what_is_hidden_from_the_first_layer_on_does_not_matter(make_rig, arch):
    """Two images that differ in hidden rows only: equal bit for bit; in one visible row: not."""
    rig = make_rig(arch)
    width = rig.staged().n_embd_inp
    rng = np.random.default_rng(3)
    embd = rng.standard_normal((16, width)).astype(np.float32)

    def logits(changed, hidden):
        values = embd.copy()
        values[changed] = 3.0
        seq = core.Sequence(width)
        seq.add_text([300, 301])
        where = np.full((16, 4), 2, dtype=np.int32)
        seq.add_image(values, grid=(4, 4), pos=where if rig.arch.endswith("vl") else None, n_pos=16)
        seq.add_text([302, 303])
        plain = rig.plain()
        plain.hide(0, hidden)
        return plain.prefill(seq)

    assert np.array_equal(logits([4, 9], [6, 11]), logits([], [6, 11]))
    assert not np.array_equal(logits([4, 9], [6]), logits([], [6]))


def test_rows_hidden_late_still_speak_before(make_rig, arch):
    rig = make_rig(arch)
    seq = prompt(rig, rig.staged(), 5, (4, 4), 6)
    outputs = []
    for after in (0, 3, 7):
        plain = rig.plain()
        plain.hide(after, list(range(5, 20)))
        outputs.append(plain.prefill(seq))
    outputs.append(rig.plain().prefill(seq))
    distances = [nmse(outputs[-1], out) for out in outputs[:-1]]
    assert min(distances) > 1e-4, "hiding shows at every depth"
    assert len({out.tobytes() for out in outputs}) == 4


def test_a_prompt_that_begins_hidden_is_no_nan(make_rig, arch, precision):
    rig = make_rig(arch, precision)
    seq = prompt(rig, rig.staged(), (4, 4), 6)
    plain = rig.plain()
    plain.hide(1, list(range(15)))
    assert np.isfinite(plain.prefill(seq, all_logits=True)[15:]).all()


def test_rows_that_come_later_can_be_hidden_before_they_have_a_cell(make_rig):
    """A long prompt in short ubatches: the first masks have no column for its last rows."""
    rig = make_rig("llama", "f32", n_ubatch=32, n_ctx=1024)
    seq = prompt(rig, rig.staged(), 300, (4, 4), 5)
    short, long = rig.plain(), rig.plain(n_ubatch=512)
    for plain in (short, long):
        plain.hide(2, list(range(301, 316)))
    error = nmse(long.prefill(seq), short.prefill(seq))
    check(error, rig.backend, rig.precision, "short ubatches = long")


def test_capture_gives_one_entry_a_ubatch(make_rig):
    rig = make_rig("llama", n_ubatch=16)
    plain = rig.plain()
    plain.capture(["l_out-2"])
    plain.prefill(prompt(rig, rig.staged(), 5, (5, 5), 20))
    shapes = [a.shape for a in plain.captured["l_out-2"]]
    assert shapes == [(1, 1, n, 128) for n in (5, 16, 9, 16, 4)]
    plain.clear()
    assert plain.captured == {}


def test_errors(make_rig):
    rig = make_rig("llama", n_ctx=256)
    plain = rig.plain()
    with pytest.raises(core.StageError, match="rows to hide are indices"):
        plain.hide(2, [-1])
    narrow = core.Sequence(4)
    narrow.add_image(np.zeros((4, 4), np.float32), grid=(2, 2))
    with pytest.raises(core.ImageError, match="are 4 wide, this model takes 128"):
        plain.prefill(narrow)
    with pytest.raises(core.StageError, match="llama_decode failed"):
        plain.prefill(prompt(rig, rig.staged(), 300))
    assert plain.prefill(prompt(rig, rig.staged(), 5)).shape == (1, 512)
