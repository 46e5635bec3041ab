"""CaptionBatch: dict of arrays -> dict of arrays, in this process and in others."""

import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atp_cpp import CaptionBatch, CutSpec, SamplingConfig
from atp_cpp.caption_batch import OUTPUT_COLUMNS
from atp_cpp.errors import AtpError, ModelError
from support.spawned import Worker

SCENE, EASY = (Path(__file__).parents[1] / "examples" / name for name in ("scene.png", "easy.png"))
OPTIONS = {
    "n_threads": 1, "n_ctx": 512, "batch_size": 2, "kv_budget": "64M", "self_test": False,
    "sampling": SamplingConfig(n_predict=16), "n_load_threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def make(tiny_files):
    """`make(**options) -> CaptionBatch` of the tiny model, pruned to a half."""
    model, mmproj = tiny_files
    settings = {"model": model, "mmproj": mmproj, "policy": "fastv:keep=0.5,after=2"} | OPTIONS
    return lambda **options: CaptionBatch(**settings | options)


@pytest.fixture(scope="module")
def caption(make):
    batch = make()
    yield batch
    batch.close()


@pytest.fixture(scope="module")
def alone(tiny_captioner):
    """`alone(path, prompt) -> caption` by itself."""

    def ask(path, prompt="Describe the image."):
        cuts, draw = "fastv:keep=0.5,after=2", OPTIONS["sampling"]
        return tiny_captioner.caption(path, prompt, policy=cuts, sampling=draw).text

    return ask


@pytest.fixture(scope="module")
def expected(alone):
    """Path -> caption, each alone."""
    texts = {path: alone(path) for path in (SCENE, EASY)}
    assert texts[SCENE] != texts[EASY]
    return texts


def objects(*values):
    column = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        column[i] = value
    return column


def test_a_batch_of_paths(caption, expected):
    batch = {
        "image": np.array([str(SCENE), str(EASY), str(SCENE)]),
        "custom_id": np.array([7, 3, 5]),
        "label": np.array([[1.0, 2.0]] * 3, dtype=np.float32),
    }
    out = caption(batch)
    assert list(out["caption"]) == [expected[SCENE], expected[EASY], expected[SCENE]]
    assert list(out["status"]) == ["ok"] * 3
    assert list(out["error"]) == [""] * 3
    assert set(out) == {"label", *OUTPUT_COLUMNS}
    assert out["custom_id"] is batch["custom_id"]
    assert out["label"] is batch["label"]
    assert list(out["n_image_tokens"]) == [64] * 3
    assert list(out["n_kept"]) == [32] * 3
    assert list(out["tokens_mean"]) == [(2 * 64 + 6 * 32) / 8] * 3


def test_every_form_of_an_image(caption, expected):
    content = SCENE.read_bytes()
    pixels = np.asarray(Image.open(SCENE).convert("RGB"))
    images = objects(
        SCENE, np.str_(SCENE), content, bytearray(content), memoryview(content), pixels,
        {"bytes": content, "path": None}, {"bytes": None, "path": str(SCENE)},
    )  # fmt: skip
    out = caption({"image": images})
    assert list(out["error"]) == [""] * len(images)
    assert set(out["caption"]) == {expected[SCENE]}
    assert out["custom_id"][0] == out["custom_id"][1] == out["custom_id"][7] == str(SCENE)
    hashes = set(out["custom_id"][[2, 3, 4, 6]])
    assert hashes == set(out["sha256"][:5])
    assert out["custom_id"][5] == out["sha256"][5] != out["sha256"][0]
    assert {type(name) for name in out["custom_id"]} == {str}


def test_pixels_of_one_size_in_one_array(caption, expected):
    pixels = np.asarray(Image.open(SCENE).convert("RGB"))
    out = caption({"image": np.stack([pixels, pixels[::-1]])})
    assert out["caption"][0] == expected[SCENE]
    assert list(out["status"]) == ["ok", "ok"]


def test_bad_images_are_rows(caption, expected):
    images = objects(
        None, str(SCENE), "/no/such.png", b"", b"%PDF-1.4", 3.5, float("nan"),
        np.zeros((4, 4), np.uint8), {"bytes": None}, [], str(EASY), SCENE.read_bytes()[:5000],
    )  # fmt: skip
    ids = np.arange(len(images))
    out = caption({"image": images, "custom_id": ids})
    good = [1, 10]
    assert [i for i in ids if out["status"][i] == "ok"] == good
    assert [out["caption"][i] for i in good] == [expected[SCENE], expected[EASY]]
    for i in set(ids) - set(good):
        assert out["status"][i] == out["finish_reason"][i] == "error"
        assert out["error"][i] and "\n" not in out["error"][i]
        assert out["caption"][i] == ""
    assert "no such file" in out["error"][2]
    assert "a PDF document" in out["error"][4]
    assert out["custom_id"] is ids


def test_types_are_always_the_same(caption):
    for images in (objects(), objects(None), objects(None, str(SCENE))):
        out = caption({"image": images})
        for name, kind in OUTPUT_COLUMNS.items():
            assert out[name].dtype == kind, name
            assert len(out[name]) == len(images)
            if kind is object:
                assert {type(value) for value in out[name]} <= {str}


def test_an_empty_batch_loads_nothing():
    batch = CaptionBatch("/no/such.gguf", mmproj="/no/such-mmproj.gguf")
    assert set(batch({"image": objects()})) == set(OUTPUT_COLUMNS)
    with pytest.raises(ModelError):
        batch({"image": objects(str(SCENE))})


def test_prompts_of_a_column(caption, alone):
    asked = "What is the color of the circle?"
    out = caption({"image": [str(SCENE)] * 5, "prompt": [asked, None, "", float("nan"), asked]})
    assert list(out["prompt"]) == [asked, *["Describe the image."] * 3, asked]
    assert out["caption"][0] == out["caption"][4] == alone(SCENE, asked)
    assert set(out["caption"][1:4]) == {alone(SCENE)} != {out["caption"][0]}
    out = caption({"image": [str(SCENE)] * 2, "prompt": ["see <__media__>", asked]})
    assert list(out["status"]) == ["error", "ok"]
    assert "own sign for an image" in out["error"][0]


def test_other_names_of_columns(make, expected):
    batch = make(image_column="file", id_column="key", prompt_column="ask")
    out = batch({"file": [str(SCENE)], "key": ["a"], "image": [1], "prompt": ["mine"], "z": ["b"]})
    batch.close()
    assert out["caption"][0] == expected[SCENE]
    assert (out["key"][0], out["image"][0], out["z"][0]) == ("a", 1, "b")
    assert (out["custom_id"][0], out["prompt"][0]) == ("a", "Describe the image.")


class Series:
    """Like a pandas Series: taken by label, given by order."""

    def __init__(self, *values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return iter(self.values)

    def __getitem__(self, label):
        raise KeyError(label)

    def __array__(self, dtype=None, copy=None):
        return objects(*self.values)


def test_columns_of_a_data_frame(caption, alone):
    batch = {"image": Series(str(SCENE), None), "prompt": Series("What?", None)}
    out = caption(batch | {"custom_id": Series("a", "b"), "tags": [["x"], ["y", "z"]]})
    assert out["caption"][0] == alone(SCENE, "What?")
    assert list(out["status"]) == ["ok", "error"]
    assert out["custom_id"].tolist() == ["a", "b"]
    assert out["tags"].tolist() == [["x"], ["y", "z"]]


def test_batches_that_cannot_be(caption):
    with pytest.raises(AtpError, match="expected a column 'image' with images, got 'img', 'id'"):
        caption({"img": objects(), "id": objects()})
    with pytest.raises(AtpError, match="expected columns of one length"):
        caption({"image": objects(None), "custom_id": objects()})


def test_pickles_hold_settings_alone(caption, make, expected):
    used = pickle.dumps(caption)
    assert len(used) < 3000
    assert used == pickle.dumps(make())
    with_plan = make(policy=[CutSpec(2, "fastv", 0.5)])
    again = pickle.loads(pickle.dumps(with_plan))
    assert again.__getstate__() == with_plan.__getstate__()
    other = pickle.loads(used)
    assert other({"image": [str(SCENE)]})["caption"][0] == expected[SCENE]
    other.close()


def test_it_can_be_closed_and_called_again(make, expected):
    batch = make()
    batch.close()
    for _ in range(2):
        assert batch({"image": [str(EASY)]})["caption"][0] == expected[EASY]
        batch.close()
        batch.close()


def test_model_files_are_named_absolutely(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batch = CaptionBatch("a/m.gguf", mmproj="p.gguf", atp="s.gguf")
    load = batch.__getstate__()["_load"]
    assert [load[k] for k in ("model", "mmproj", "atp")] == [
        tmp_path / "a/m.gguf", tmp_path / "p.gguf", tmp_path / "s.gguf",
    ]  # fmt: skip
    assert CaptionBatch().__getstate__()["_load"]["model"] is None


def test_every_option_of_a_captioner_is_there():
    import inspect

    from atp_cpp import Captioner

    own = set(inspect.signature(CaptionBatch).parameters)
    assert set(inspect.signature(Captioner).parameters) <= own
    many = set(inspect.signature(Captioner.caption_many).parameters)
    decided = {"self", "images", "ordered", "overlap", "embeddings", "on_error"}
    assert many - decided <= own


def test_the_demo_model_needs_no_settings(demo_captioner):
    batch = CaptionBatch(n_threads=1)
    out = batch({"image": [SCENE]})
    batch.close()
    alone = demo_captioner.caption(SCENE)
    assert out["caption"][0] == alone.text
    assert out["n_kept"][0] == alone.report.n_kept[-1]


# ---- in other processes


def test_spawned_processes_and_one_that_is_killed(make, expected):
    batch = make()
    work = [{"image": [str(p), "/no/such.png"], "custom_id": [i, -i]}
            for i, p in enumerate((SCENE, EASY, SCENE, EASY))]  # fmt: skip
    workers = [Worker(batch), Worker(batch)]
    for worker, part in zip(workers, work, strict=False):
        worker.connection.send(part)
    answers = [worker.connection.recv() for worker in workers]
    workers[0].connection.send(work[2])
    os.kill(workers[0].process.pid, signal.SIGKILL)
    with pytest.raises((EOFError, ConnectionResetError)):
        workers[0].connection.recv()
    workers[0].process.join(60)
    workers[1].connection.send(work[2])  # done again by the other one
    answers.append(workers[1].connection.recv())
    workers.append(Worker(batch))
    workers[2].connection.send(work[3])
    answers.append(workers[2].connection.recv())
    for worker in workers[1:]:
        worker.end()
    assert len({pid for pid, _ in answers}) == 3
    for i, (_, out) in enumerate(answers):
        assert list(out["status"]) == ["ok", "error"]
        assert out["caption"][0] == expected[EASY if i % 2 else SCENE]
        assert list(out["custom_id"]) == [i, -i]


def in_fork(caption, connection):
    connection.send(caption({"image": [str(SCENE)]})["caption"][0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_loads_its_own(caption, expected):
    caption({"image": [str(SCENE)]})
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=in_fork, args=(caption, theirs))
    child.start()
    assert ours.poll(60), "the child hangs"
    assert ours.recv() == expected[SCENE]
    child.join(60)
    assert child.exitcode == 0
    assert caption({"image": [str(SCENE)]})["caption"][0] == expected[SCENE]
