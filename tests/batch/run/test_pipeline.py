"""caption_many with a fake engine: each image its own caption, in order, lazily, whatever fails."""

import gc
import itertools
import logging
import random
import threading

import numpy as np
import pytest
from PIL import Image

from atp_cpp import SamplingConfig
from atp_cpp.batch.load import loading
from atp_cpp.batch.run import pipeline
from atp_cpp.batch.source.item import Item
from atp_cpp.cli.program import build_parser
from atp_cpp.errors import AtpError, ModelError, PlanError, StageError
from support.fake_runs import DRAW, picture, words


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("n_load_threads", [0, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_each_image_has_its_own_caption(make, folder, batch_size, n_load_threads, overlap):
    cap, engine = make()
    rows = list(
        cap.caption_many(folder, "What?", batch_size=batch_size, n_load_threads=n_load_threads,
                         overlap=overlap)
    )  # fmt: skip
    assert [row.caption for row in rows] == [words(10 * i, "What?") for i in range(12)]
    assert [row.custom_id for row in rows] == [row.image for row in rows] == list(map(str, folder))
    assert engine.live == {}
    most = max(n for kind, n in engine.log if kind == "step")
    assert most <= batch_size if overlap else most == batch_size


def test_the_program_and_python_open_images_with_as_many_threads(make, folder, monkeypatch):
    asked = []

    def load_all(*args, n_threads, **options):
        asked.append(n_threads)
        return loading.load_all(*args, n_threads=n_threads, **options)

    monkeypatch.setattr(pipeline, "load_all", load_all)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert len(list(make()[0].caption_many(folder, "What?"))) == len(folder)
    program = build_parser().parse_args(["caption", "a.png"]).load_threads
    assert asked == [program] == [2]


def test_a_row_says_all(make, folder):
    cap, _ = make(options={"policy": "fastv:keep=0.25,after=2"})
    draw = SamplingConfig(n_predict=3, seed=7)
    (row,) = cap.caption_many(folder[3:4], "Why?", sampling=draw)
    assert (row.custom_id, row.image, row.prompt) == (str(folder[3]), str(folder[3]), "Why?")
    assert row.caption == "30.000 USER: <__media__>"
    assert (row.finish_reason, row.status, row.error, row.seed) == ("length", "ok", "", 7)
    assert (row.n_image_tokens, row.n_kept, row.policy) == (16, [4], "fastv:keep=0.25,after=2")
    assert len(row.sha256) == 64 and row.t_load > 0 and row.t_encode == 1.0
    assert (row.model, row.mmproj, row.atp) == ("model.gguf", "mmproj.gguf", "")
    assert row.config_hash == cap.config_hash(sampling=draw)
    assert row.config_hash != cap.config_hash()
    assert row.parsed is None


@pytest.mark.parametrize(
    ("answer", "n_predict", "parsed"),
    [
        ('{"a": [1, 2]}', 9, {"a": [1, 2]}), ('{"a": [1, 2]}', 2, None),
        ('{"a": 1} x', 2, {"a": 1}), ("[1, 2", 9, None), ("12", 9, 12), ("12 34", 1, None),
        ("no", 9, None),
    ],
)  # fmt: skip
def test_an_answer_by_a_schema_is_parsed(make, monkeypatch, answer, n_predict, parsed):
    """A number that was cut short is none."""
    cap, engine = make()
    encode = engine.encode

    def encode_as(*args, **options):
        sequence = encode(*args, **options)
        sequence.words = tuple(f" {word}" for word in answer.split())
        return sequence

    monkeypatch.setattr(engine, "encode", encode_as)
    draw = SamplingConfig(n_predict=n_predict, json_schema='{"type": "object"}')
    (row,) = cap.caption_many([picture(1)], sampling=draw)
    assert row.parsed == parsed
    (row,) = cap.caption_many([picture(1)], sampling=SamplingConfig(n_predict=n_predict))
    assert row.parsed is None


def test_every_kind_of_image(make, folder):
    cap, _ = make()
    item = Item("mine", "a.tar/b.png", folder[4].read_bytes, ("X?", "Y?"))
    images = [str(folder[1]), folder[2].read_bytes(), picture(77), Image.open(folder[3]), item]
    rows = list(cap.caption_many(images, "Z?"))
    assert [row.caption.split()[0] for row in rows] == [
        "10.000", "20.000", "77.000", "30.000", "40.000", "40.000",
    ]  # fmt: skip
    assert [row.custom_id for row in rows] == [str(folder[1]), "1", "2", "3", "mine", "mine"]
    assert [row.image for row in rows[1:]] == [
        "<bytes>", "<array>", str(folder[3]), "a.tar/b.png", "a.tar/b.png",
    ]  # fmt: skip
    assert [row.prompt for row in rows] == ["Z?"] * 4 + ["X?", "Y?"]


def test_what_is_no_image_is_its_own_error(make, folder, tmp_path):
    cap, _ = make()
    (tmp_path / "bad.jpg").write_bytes(b"%PDF-1.7")
    listed = Item("line 3", "line 3", b"", ("?",), error="line 3 is no JSON")
    images = [folder[0], tmp_path / "none.png", 17, tmp_path / "bad.jpg", listed, folder[1]]
    rows = list(cap.caption_many(images, batch_size=3))
    assert [row.status for row in rows] == ["ok", "error", "error", "error", "error", "ok"]
    assert "no such file" in rows[1].error
    assert "got int" in rows[2].error and rows[2].custom_id == "2"
    assert "PDF" in rows[3].error
    assert rows[4].error == "line 3 is no JSON"
    assert {row.finish_reason for row in rows[1:5]} == {"error"}
    assert rows[5].caption.startswith("10.000")


@pytest.mark.parametrize("overlap", [False, True])
def test_rows_come_in_order_or_as_they_end(make, overlap):
    cap, _ = make()
    prompts = ["a b c d e f g h", "a", "a b c d e", "a b"]
    items = [Item(str(i), str(i), picture(i), (prompts[i % 4],)) for i in range(40)]
    ordered = list(cap.caption_many(items, batch_size=3, overlap=overlap, sampling=DRAW))
    assert [row.custom_id for row in ordered] == [str(i) for i in range(40)]
    as_ended = list(cap.caption_many(items, batch_size=3, ordered=False, overlap=overlap,
                                     sampling=DRAW))  # fmt: skip
    ids = [row.custom_id for row in as_ended]
    assert sorted(ids, key=int) == [str(i) for i in range(40)]
    assert overlap or ids != sorted(ids, key=int)
    texts = {row.custom_id: row.caption for row in ordered}
    assert {row.custom_id: row.caption for row in as_ended} == texts
    assert texts["4"] == words(4, prompts[0])


def test_bad_arguments_are_said_before_anything_is_done(make, folder):
    cap, engine = make()
    for options, says in [
        ({"batch_size": 0}, "batch_size"),
        ({"kv_budget": "much"}, "such as 512M"),
        ({"kv_budget": 0}, "kv_budget"),
        ({"prompt": "A <__media__>"}, "media"),
        ({"prompt": ["fine", "A <__media__>"]}, "media"),
        ({"on_error": "raise"}, "on_error"),
        ({"n_load_threads": -1}, "n_load_threads"),
        ({"prompt": []}, "prompt"),
    ]:
        with pytest.raises(AtpError, match=says):
            cap.caption_many(folder, **options)
    with pytest.raises(PlanError):
        cap.caption_many(folder, policy="fastv:after=99")
    for one in (str(folder[0]), folder[0], folder[0].read_bytes(), picture(1)):
        with pytest.raises(AtpError, match="put it into a list"):
            cap.caption_many(one)
    assert engine.log == []


def test_it_is_lazy(make):
    drawn = []

    def endless():
        for i in itertools.count():
            drawn.append(i)
            yield picture(i % 256)

    cap, engine = make()
    run = cap.caption_many(endless(), batch_size=2, n_load_threads=2)
    assert drawn == [] and engine.log == []
    for i in range(30):
        assert next(run).custom_id == str(i)
        assert len(drawn) <= i + 1 + 2 + 2 * 2 + 1 + 2
    run.close()
    assert engine.live == {}
    n = len(drawn)
    with pytest.raises(StopIteration):
        next(run)
    assert len(drawn) == n


def test_a_row_held_back_holds_back_only_so_many(make):
    """One caption takes long, and all images behind it are bad: they are not all looked at."""
    drawn = []

    def images():
        yield Item("long", "long", picture(1), (" ".join("x" * 300),))
        for i in range(5000):
            drawn.append(i)
            yield Item(str(i), str(i), b"", ("?",), error="bad")

    cap, _ = make()
    run = cap.caption_many(images(), batch_size=4, sampling=SamplingConfig(n_predict=400))
    assert next(run).custom_id == "long"
    assert len(drawn) < 150
    assert sum(row.error == "bad" for row in run) == 5000


def test_nothing_is_held_for_long(make):
    """Pixels of 300 images pass; few are there at a time."""
    alive, most = set(), 0

    class Watched(np.ndarray):
        pass

    def images():
        nonlocal most
        import weakref

        for i in range(300):
            array = picture(i % 256).view(Watched)
            alive.add(i)
            weakref.finalize(array, alive.discard, i)
            most = max(most, len(alive))
            yield Item(str(i), str(i), array, ("?",))
            del array

    cap, _ = make()
    assert sum(1 for _ in cap.caption_many(images(), batch_size=4, n_load_threads=2)) == 300
    gc.collect()
    assert most < 40


def test_an_exception_of_the_images_comes_after_the_rows_under_way(make, folder):
    def images():
        yield from folder[:5]
        raise OSError("the share went away")

    for overlap in (False, True):
        cap, engine = make()
        run = cap.caption_many(images(), batch_size=3, overlap=overlap)
        assert [next(run).custom_id for _ in range(5)] == list(map(str, folder[:5]))
        with pytest.raises(OSError, match="the share went away"):
            next(run)
        assert engine.live == {}
        assert len(list(cap.caption_many(folder))) == 12


def test_stop_gives_the_rows_under_way(make, folder):
    cap, engine = make()
    run = cap.caption_many(folder, batch_size=4)
    first = next(run)
    run.stop()
    rest = list(run)
    started = sum(kind == "start" for kind, _ in engine.log)
    assert 1 + len(rest) == started < 12
    assert [row.custom_id for row in [first, *rest]] == list(map(str, folder[:started]))
    run = cap.caption_many(folder)
    run.stop()
    assert list(run) == []


def test_on_error_stop_ends_after_the_first(make, folder, tmp_path):
    cap, _ = make()
    images = [*folder[:3], tmp_path / "none.png", *folder[3:]]
    rows = list(cap.caption_many(images, batch_size=2, on_error="stop"))
    assert [row.status for row in rows[:4]] == ["ok", "ok", "ok", "error"]
    assert len(rows) <= 5
    assert all(row.status == "ok" for row in rows[4:])


def test_a_run_that_is_forgotten_frees_the_batch(make, folder):
    cap, engine = make()
    for row in cap.caption_many(folder, batch_size=4):
        assert row.status == "ok"
        break
    assert engine.live == {}
    with cap.caption_many(folder) as run:
        next(run)
        with pytest.raises(AtpError, match="has a caption_many open"):
            next(cap.caption_many(folder))
    assert len(list(cap.caption_many(folder))) == 12
    assert not [t for t in threading.enumerate() if t.name.startswith("atp-")]


def test_one_caption_in_between_is_refused(make, folder):
    cap, _ = make()
    with cap.caption_many(folder, batch_size=4) as run:
        next(run)
        with pytest.raises(AtpError, match="has a caption_many open"):
            cap.caption(folder[0])
        assert len(list(run)) == 11
    assert cap.caption(folder[2]).text == words(20, "Describe the image.")


def test_a_closed_captioner_says_so_and_makes_no_rows_of_it(make, folder):
    cap, _ = make()
    run = cap.caption_many(folder, batch_size=2)
    next(run)
    cap.close()
    with pytest.raises(AtpError, match="closed"):
        list(run)
    with pytest.raises(AtpError, match="closed"):
        next(cap.caption_many(folder))


def test_ctrl_c_goes_through(make, folder):
    cap, engine = make()
    run = cap.caption_many(folder, batch_size=2)
    next(run)

    def interrupt():
        raise KeyboardInterrupt

    engine.on_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        list(run)
    assert engine.live == {}
    engine.on_step = lambda: None
    assert len(list(cap.caption_many(folder))) == 12


def test_a_model_that_cannot_batch_makes_one_at_a_time(make, folder, caplog):
    caplog.set_level(logging.WARNING, "atp_cpp")
    cap, engine = make(info={"can_batch": False}, can_batch=False)
    assert len(list(cap.caption_many(folder, batch_size=8))) == 12
    assert {n for kind, n in engine.log if kind == "step"} == {1}
    assert "one caption at a time" in caplog.text


@pytest.mark.parametrize("kv_budget", [100 * 8, 250 * 8, "1k", 10**9])
def test_a_small_budget_changes_no_caption(make, folder, kv_budget):
    cap, engine = make()
    rows = list(cap.caption_many(folder, "What?", kv_budget=kv_budget))
    assert [row.caption for row in rows] == [words(10 * i, "What?") for i in range(12)]
    steps = [n for kind, n in engine.log if kind == "step"]
    assert max(steps) == {800: 1, 2000: 4, "1k": 2, 10**9: 12}[kv_budget]


def test_a_budget_that_fits_none(make, folder):
    cap, _ = make()
    rows = list(cap.caption_many(folder, kv_budget=100))
    assert [row.status for row in rows] == ["error"] * 12
    assert all("--kv-budget" in row.error and "100 bytes" in row.error for row in rows)


def test_shuffled_orders_and_random_failures(make):
    """Every row is its image's, in every order, at every size, whatever fails in between."""
    rng = random.Random(5)
    for _ in range(30):
        cap, engine = make()
        items = [
            Item(str(i), str(i), picture(i), (f"{'a ' * rng.randint(1, 9)}?",))
            if rng.random() < 0.9
            else Item(str(i), str(i), b"", ("?",), error=f"bad {i}")
            for i in rng.sample(range(200), 40)
        ]
        poison = rng.randint(1, 60)

        def fail_once(engine=engine, poison=poison):
            if engine.steps == poison:
                engine.steps += 1
                engine.live.clear()
                raise StageError("once")

        engine.on_step = fail_once
        ordered = rng.random() < 0.5
        rows = list(
            cap.caption_many(items, batch_size=rng.randint(1, 8), ordered=ordered, sampling=DRAW,
                             overlap=rng.random() < 0.3, kv_budget=rng.choice((800, 2000, None)))
        )  # fmt: skip
        if ordered:
            assert [row.custom_id for row in rows] == [item.custom_id for item in items]
        by_id = {row.custom_id: row for row in rows}
        assert len(rows) == len(by_id) == 40
        for item in items:
            row = by_id[item.custom_id]
            if item.error:
                assert row.error == item.error
            elif row.error != "once":  # it was alone then
                assert row.caption == words(int(item.custom_id), item.prompts[0]), row


def test_an_unreadable_model_file_is_said(make, folder):
    def gone(path):
        raise ModelError("model.gguf: cannot be read")

    cap, _ = make(fingerprint=gone)
    with pytest.raises(ModelError, match="cannot be read"):
        next(cap.caption_many(folder))
    assert not cap._batch.locked()
