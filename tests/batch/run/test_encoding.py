"""Opened images to jobs, with a fake engine: what is done where and once, and jobs made ahead."""

import itertools
import threading
import time

import numpy as np
import pytest

from atp_cpp.batch.run.embeddings import EmbeddingCache
from atp_cpp.batch.run.encoding import Ahead
from atp_cpp.batch.source.item import Item
from atp_cpp.errors import ImageError
from support.fake_runs import picture, words


@pytest.fixture
def prepared(make):
    """A captioner, and the prompts its engine prepares, each with the thread and the shade."""
    cap, engine = make()
    seen, prepare = [], engine.prepare

    def noted(prompt, images):
        seen.append((threading.current_thread().name.split("-")[:2], prompt, images[0][0, 0, 0]))
        return prepare(prompt, images)

    engine.prepare = noted
    return cap, engine, seen


def test_images_are_resized_in_the_threads_that_open_them(prepared, folder):
    cap, engine, seen = prepared
    rows = list(cap.caption_many(folder, "What?", n_load_threads=3))
    assert [row.caption for row in rows] == [words(10 * i, "What?") for i in range(12)]
    assert {tuple(thread) for thread, _, _ in seen} == {("atp", "load")}
    assert sorted(shade for _, _, shade in seen) == [10 * i for i in range(12)]
    assert {prompt for _, prompt, _ in seen} == {cap.render("What?")}
    assert engine.n_encoded == 12


def test_of_several_prompts_the_first_is_prepared(prepared, folder):
    cap, engine, seen = prepared
    rows = list(cap.caption_many(folder, ["A?", "B?"]))
    assert [row.caption for row in rows[:2]] == [words(0, "A?"), words(0, "B?")]
    assert {prompt for _, prompt, _ in seen} == {cap.render("A?")}
    assert (len(seen), engine.n_encoded) == (12, 12)


def test_what_may_be_kept_from_another_run_is_not_prepared(prepared, folder, tmp_path):
    cap, _, seen = prepared
    list(cap.caption_many(folder, embeddings=EmbeddingCache(tmp_path / "kept")))
    assert seen == []


def test_what_cannot_be_prepared_is_told_prompt_by_prompt(make, folder):
    cap, engine = make()

    def refused(prompt, images):
        raise ImageError("too odd")

    engine.prepare = refused
    rows = list(cap.caption_many(folder[:2], ["A?", "B?"]))
    assert [row.caption for row in rows] == [words(s, p) for s in (0, 10) for p in ("A?", "B?")]
    engine.encode = lambda *_, **__: refused(None, None)
    rows = list(cap.caption_many(folder[:2], ["A?", "B?"]))
    assert [row.error for row in rows] == ["too odd"] * 4


@pytest.mark.parametrize("n_threads_encode", [0, 1])
def test_threads_of_its_own_let_the_encoder_run_ahead(make, folder, n_threads_encode):
    cap, engine = make(options={"n_threads_encode": n_threads_encode})
    threads, encode = set(), engine.encode_prepared

    def noted(prepared):
        threads.add(threading.current_thread() is threading.main_thread())
        return encode(prepared)

    engine.encode_prepared = noted
    list(cap.caption_many(folder))
    assert threads == {n_threads_encode == 0}
    list(cap.caption_many(folder, overlap=n_threads_encode == 0))
    assert threads == {True, False}


def test_several_prompts_share_one_run_of_the_encoder(make, folder):
    cap, engine = make()
    rows = list(cap.caption_many(folder[:4], ["A?", "B?", "C?"], batch_size=2))
    assert [(row.image, row.prompt) for row in rows] == list(
        itertools.product(map(str, folder[:4]), ["A?", "B?", "C?"])
    )
    assert [row.caption for row in rows[3:6]] == [words(10, p) for p in ("A?", "B?", "C?")]
    assert engine.n_encoded == 4
    assert [row.t_encode for row in rows] == [1.0, 0.0, 0.0] * 4
    assert [row.t_load > 0 for row in rows] == [True, False, False] * 4


def test_a_bad_prompt_of_an_item_is_its_own_error(make):
    cap, engine = make()
    item = Item("i", "i", picture(5), ("A <__media__>?", "B?", "C?"))
    rows = list(cap.caption_many([item]))
    assert "media" in rows[0].error
    assert [row.caption for row in rows[1:]] == [words(5, "B?"), words(5, "C?")]
    assert engine.n_encoded == 1


def test_embeddings_are_kept_between_runs(make, folder, tmp_path):
    cap, engine = make()
    kept = tmp_path / "kept"
    first = list(cap.caption_many(folder, embeddings=kept))
    assert engine.n_encoded == 12
    again = list(cap.caption_many(folder, ["Describe the image.", "B?"], embeddings=kept))
    assert engine.n_encoded == 12
    assert [row.caption for row in again[::2]] == [row.caption for row in first]
    assert {row.t_encode for row in again} == {0.0}
    for path in kept.iterdir():
        path.write_bytes(b"nonsense")
    third = list(cap.caption_many(folder, embeddings=EmbeddingCache(kept)))
    assert engine.n_encoded == 24
    assert [row.caption for row in third] == [row.caption for row in first]
    other, of_other = make(fingerprint=lambda path: "g")  # another projector's embeddings
    list(other.caption_many(folder, embeddings=kept))
    assert of_other.n_encoded == 12


def test_embeddings_of_another_shape_are_made_again(make, folder, tmp_path):
    cap, engine = make()

    class Wrong(EmbeddingCache):
        def get(self, sha256, encoder):
            return np.zeros((3, 4), np.float32)

    rows = list(cap.caption_many(folder, ["A?", "B?"], embeddings=Wrong(tmp_path / "kept")))
    assert [row.status for row in rows] == ["ok"] * 24
    assert engine.n_encoded == 12


# ---- jobs made ahead


def tasks_of(n, made, go=None):
    def task(i):
        if go is not None:
            go.acquire()
        made.append((i, threading.current_thread() is threading.main_thread()))
        return i

    for i in range(n):
        yield lambda i=i: task(i)


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_results_come_in_order(depth):
    made = []
    ahead = Ahead(tasks_of(20, made), depth)
    assert list(ahead) == list(range(20))
    assert made == [(i, depth == 0) for i in range(20)]
    with pytest.raises(StopIteration):
        next(ahead)
    ahead.close()


@pytest.mark.parametrize("depth", [0, 2, 3])
def test_so_many_are_drawn_before_they_are_asked_for(depth):
    drawn = []

    def tasks():
        for i in range(10):
            drawn.append(i)
            yield lambda i=i: i

    ahead = Ahead(tasks(), depth)
    assert drawn == []
    assert next(ahead) == 0
    assert len(drawn) == max(1, depth)
    assert next(ahead) == 1
    assert len(drawn) == max(2, depth + 1)
    ahead.close()


@pytest.mark.parametrize("depth", [0, 2])
def test_what_ends_the_tasks_comes_after_those_before(depth):
    def tasks():
        yield lambda: 1
        yield lambda: 2
        raise OSError("gone")

    ahead = Ahead(tasks(), depth)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(OSError, match="gone"):
        next(ahead)
    ahead.close()


def test_ready_says_whether_there_is_a_wait():
    go = threading.Semaphore(1)
    ahead = Ahead(tasks_of(3, [], go), 2)
    assert ahead.ready()  # nothing is under way: the next call begins it
    assert next(ahead) == 0
    assert not ahead.ready()
    go.release()
    deadline = time.monotonic() + 10
    while not ahead.ready():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    go.release()
    assert list(ahead) == [1, 2]
    ahead.close()


def test_closing_drops_what_has_not_begun():
    go, made = threading.Semaphore(1), []
    ahead = Ahead(tasks_of(9, made, go), 5)
    assert next(ahead) == 0
    threading.Timer(0.05, go.release, (9,)).start()
    ahead.close()
    assert len(made) <= 2
    assert not [t for t in threading.enumerate() if t.name.startswith("atp-encode")]
