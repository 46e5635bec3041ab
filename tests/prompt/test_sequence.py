"""Sequences: rows in order, positions that stay, and embeddings of the right shape."""

import numpy as np
import pytest

from atp_cpp import _core as core

WIDTH = 6


def embeddings(n, width=WIDTH):
    return np.zeros((n, width), dtype=np.float32)


def test_rows_are_in_order_and_images_are_counted_through():
    seq = core.Sequence(WIDTH)
    seq.add_text([1, 2, 3])
    seq.add_image(embeddings(4), grid=(2, 2))
    seq.add_text([4])
    seq.add_image(embeddings(3), grid=(1, 3))
    assert seq.n_rows == seq.n_pos == 11
    assert seq.n_image_tokens == 7
    assert seq.image_rows == [3, 4, 5, 6, 8, 9, 10]
    assert seq.tokens == [1, 2, 3, -1, -1, -1, -1, 4, -1, -1, -1]
    assert seq.grids == [(2, 2), (1, 3)]


def test_an_image_may_take_fewer_positions_than_tokens():
    seq = core.Sequence(WIDTH)
    seq.add_text([1, 2])
    where = np.array([[2, 2, 2, 0], [2, 2, 3, 0], [2, 3, 2, 0], [2, 3, 3, 0]], dtype=np.int32)
    seq.add_image(embeddings(4), grid=(2, 2), pos=where, n_pos=2)
    assert (seq.n_rows, seq.n_pos) == (6, 4)
    seq.add_text([1])
    assert (seq.n_rows, seq.n_pos) == (7, 5)


def test_an_empty_one_has_nothing():
    seq = core.Sequence(0)
    assert (seq.n_rows, seq.n_pos, seq.n_image_tokens, seq.image_rows) == (0, 0, 0, [])
    assert (seq.tokens, seq.grids, seq.embd.shape) == ([], [], (0, 0))
    assert core.Sequence(WIDTH).embd.shape == (0, WIDTH)


@pytest.mark.parametrize(
    ("embd", "options", "reason"),
    [
        (embeddings(3), {"grid": (2, 2)}, r"must be \[grid rows \* cols = 4, n_embd_inp = 6\]"),
        (embeddings(4, 5), {"grid": (2, 2)}, "n_embd_inp = 6"),
        (np.zeros(24, dtype=np.float32), {"grid": (2, 2)}, "n_embd_inp = 6"),
        (embeddings(4), {"grid": (-2, -2)}, "at least 1 x 1 tokens, got -2 x -2"),
        (embeddings(0), {"grid": (0, 3)}, "at least 1 x 1 tokens, got 0 x 3"),
        (embeddings(4), {"grid": (2, 2), "pos": np.zeros((4, 3), np.int32)}, r"must be \[4, 4\]"),
        (embeddings(4), {"grid": (2, 2), "pos": np.zeros((3, 4), np.int32)}, r"must be \[4, 4\]"),
    ],
)
def test_what_is_no_image_is_refused_and_leaves_nothing(embd, options, reason):
    seq = core.Sequence(WIDTH)
    seq.add_text([1])
    with pytest.raises(core.ImageError, match=reason):
        seq.add_image(embd, **options)
    assert (seq.n_rows, seq.n_image_tokens) == (1, 0)


def test_embeddings_are_copied_and_converted():
    seq = core.Sequence(WIDTH)
    values = np.arange(4.0 * WIDTH).reshape(WIDTH, 4).T  # other type, other order in memory
    seq.add_image(values, grid=(2, 2))
    expected = values.astype(np.float32)
    values[:] = 7.0
    assert seq.n_image_tokens == 4
    assert seq.embd.dtype == np.float32
    np.testing.assert_array_equal(seq.embd, expected)
    seq.embd[:] = 7.0  # a copy, too
    np.testing.assert_array_equal(seq.embd, expected)
