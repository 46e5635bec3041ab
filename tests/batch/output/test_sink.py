"""What is still to do, and where rows go, in an order that any end of the process may cut."""

import hashlib
import logging
import os
import queue
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from atp_cpp.batch.load.memory import Memory
from atp_cpp.batch.load.opening import Opener
from atp_cpp.batch.output.resume import read_rows
from atp_cpp.batch.output.rows_file import RowsFile
from atp_cpp.batch.output.sink import Sink
from atp_cpp.batch.output.text_files import TextFiles
from atp_cpp.batch.source.item import Item
from atp_cpp.batch.source.tars import images_in_tar
from atp_cpp.errors import AtpError, WriteError
from support.made_rows import CONFIG, made_failure, made_row


@pytest.fixture
def images(tmp_path):
    """A function n -> items of n images with two prompts."""

    def make(n=3, prompts=("What?", "Where?")):
        names = [str(tmp_path / f"{i}.jpg") for i in range(n)]
        return [Item(name, name, name, prompts) for name in names]

    return make


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


def answers(items):
    return [made_row(item.custom_id, prompt) for item in items for prompt in item.prompts]


def keys(rows):
    return [(os.path.basename(row.custom_id), row.prompt, row.status) for row in rows]


def asked(items):
    return [(os.path.basename(item.custom_id), item.prompts, item.error) for item in items]


def run(path, items, *, n_rows=None, texts=None, **options):
    """A run that is killed after n_rows answers; returns what was asked."""
    with RowsFile(path, **options) as rows:
        sink = Sink(rows=rows, texts=texts, config_hash=CONFIG)
        todo = list(sink.pending(items))
        for row in answers(todo)[:n_rows]:
            sink.put(row)
    return asked(todo)


# ---- a file of rows


def test_a_second_run_does_the_rest(path, images):
    assert run(path, images(), n_rows=3) == [
        (f"{i}.jpg", ("What?", "Where?"), "") for i in range(3)
    ]
    assert run(path, images()) == [("1.jpg", ("Where?",), ""), ("2.jpg", ("What?", "Where?"), "")]
    assert run(path, images()) == []
    assert list(read_rows(path)) == answers(images())


def run_over_files(path, items):
    """A run that opens files as a real one does; returns what was asked, and the sink."""
    with RowsFile(path) as rows:
        sink = Sink(rows=rows, config_hash=CONFIG)
        opener = Opener(lambda item, pixels: pixels, Memory(1 << 30))
        todo = list(sink.pending(items))
        for index, item in enumerate(todo):
            loaded = opener.open(index, item, item.source)
            for row in answers([item]):
                sink.put(replace(row, sha256=loaded.sha256, stamp=loaded.stamp))
    return [item.image for item in todo], sink


def drawn(path, shade):
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(path, "BMP")  # as long whatever is in it
    return str(path)


def test_a_picture_that_was_replaced_is_captioned_anew(path, tmp_path, caplog):
    names = [drawn(tmp_path / f"{i}.bmp", 10 * i) for i in range(3)]
    items = [Item(name, name, name, ("What?", "Where?")) for name in names]
    assert run_over_files(path, items)[0] == names
    first = list(read_rows(path))
    os.utime(names[0], ns=(1, 1))  # touched: the same picture
    drawn(names[1], 77)
    os.utime(names[1], ns=(2, 2))
    asked_now, sink = run_over_files(path, items)
    assert (asked_now, sink.n_replaced, sink.n_skipped) == ([names[1]], 1, 2)
    assert "another picture has this name" in caplog.text
    rows = list(read_rows(path))
    assert len(path.read_bytes().splitlines()) == 8, "only appended to"
    assert len(rows) == 6, "the newest row of each key"
    old, new = ({r.image: r.sha256 for r in those} for those in (first, rows))
    assert [old[name] == new[name] for name in names] == [True, False, True]
    assert new[names[1]] == hashlib.sha256((tmp_path / "1.bmp").read_bytes()).hexdigest()
    assert run_over_files(path, items)[0] == []


def test_only_a_picture_of_another_size_or_time_is_read_again(path, tmp_path, monkeypatch):
    names = [drawn(tmp_path / f"{i}.bmp", 10 * i) for i in range(3)]
    items = [Item(name, name, name, ("What?",)) for name in names]
    run_over_files(path, items)
    read = []
    monkeypatch.setattr(
        "atp_cpp.batch.output.sink.hash_of", lambda source, name: read.append(name) or "0" * 64
    )
    assert run_over_files(path, items)[0] == [] and read == []
    os.utime(names[2], ns=(2, 2))
    assert run_over_files(path, items)[0] == [names[2]] and read == [names[2]]


def test_an_id_that_stands_for_another_file_now_is_captioned_anew(path, tmp_path):
    """A line of JSONL that was changed."""
    old, new = drawn(tmp_path / "old.bmp", 1), drawn(tmp_path / "new.bmp", 2)
    run_over_files(path, [Item("cat", old, old, ("What?",))])
    assert run_over_files(path, [Item("cat", new, new, ("What?",))])[0] == [new]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_member_of_a_tar_that_was_replaced(path, tmp_path, suffix):
    archive = tmp_path / f"a.{suffix}"

    def pack(*shades):
        with tarfile.open(archive, "w:gz" if suffix.endswith("gz") else "w") as tar:
            for i, shade in enumerate(shades):
                member = Path(drawn(tmp_path / f"{i}.bmp", shade))
                os.utime(member, ns=(shade * 10**9, shade * 10**9))
                tar.add(member, member.name)

    pack(1, 2)
    assert len(run_over_files(path, images_in_tar(str(archive), ("What?",)))[0]) == 2
    assert run_over_files(path, images_in_tar(str(archive), ("What?",)))[0] == []
    pack(1, 3)
    assert run_over_files(path, images_in_tar(str(archive), ("What?",)))[0] == [f"{archive}/1.bmp"]


def test_another_configuration_is_done_anew(path, images):
    run(path, images(1))
    with RowsFile(path) as rows:
        assert len(list(Sink(rows=rows, config_hash="another").pending(images(1)))) == 1


def test_an_image_that_is_listed_twice_is_captioned_once(path, images):
    items = images(2)
    with RowsFile(path) as rows:
        sink = Sink(rows=rows, config_hash=CONFIG)
        todo = list(sink.pending([*items, *items, replace(items[0], prompts=("What?", "Why?"))]))
        both = ("What?", "Where?")
        assert asked(todo) == [("0.jpg", both, ""), ("1.jpg", both, ""), ("0.jpg", ("Why?",), "")]
        assert (sink.n_repeated, sink.n_skipped) == (2, 0)
    run(path, items)
    with RowsFile(path) as rows:
        sink = Sink(rows=rows, config_hash=CONFIG)
        assert list(sink.pending(items)) == []
        assert (sink.n_repeated, sink.n_skipped) == (0, 2)


def test_a_prompt_that_stands_there_twice_is_asked_once(path, images):
    assert run(path, images(1, ("What?", "What?"))) == [("0.jpg", ("What?",), "")]


def test_pending_is_lazy(path, images):
    drawn = []
    with RowsFile(path) as rows:
        sink = Sink(rows=rows, config_hash=CONFIG)
        pending = sink.pending(drawn.append(item) or item for item in images(3))
        next(pending)
        assert len(drawn) == 1


def test_an_image_that_is_known_to_be_bad_keeps_its_error(path, images):
    items = [replace(images(1)[0], error="line 7: no image")]
    assert run(path, items, n_rows=0) == [("0.jpg", ("What?", "Where?"), "line 7: no image")]
    assert run(path, items, texts=TextFiles(), n_rows=0)[0][2] == "line 7: no image"


def test_an_id_of_two_images_is_noted(path, images, caplog):
    first, second, third = (replace(item, custom_id="c1") for item in images(3))
    for texts in (None, TextFiles("overwrite")):
        caplog.clear()
        with RowsFile(path) as rows:
            sink = Sink(rows=rows, texts=texts, config_hash=CONFIG)
            todo = list(sink.pending([first, second, first, third]))
            assert (len(todo), sink.n_conflicts) == (1, 2)
        assert (
            "1.jpg: passed over, since its custom_id 'c1' is that of another" in caplog.messages[0]
        )
    with RowsFile(path) as rows:
        for row in answers(todo):
            rows.append(row)
    with RowsFile(path) as rows:  # a resumed run says it again
        sink = Sink(rows=rows, config_hash=CONFIG)
        assert list(sink.pending([first, second])) == []
        assert (sink.n_skipped, sink.n_conflicts) == (1, 1)


# ---- texts and rows


def texts_in(folder):
    return {path.name: path.read_text() for path in folder.glob("*.txt")}


def test_an_image_gets_its_text_before_its_rows(path, images, tmp_path, monkeypatch):
    seen = []
    real = RowsFile.append
    monkeypatch.setattr(
        RowsFile, "append", lambda rows, row: seen.append(texts_in(tmp_path)) or real(rows, row)
    )
    with RowsFile(path) as rows:
        sink = Sink(rows=rows, texts=TextFiles(), config_hash=CONFIG)
        (item,) = sink.pending(images(1))
        first, second = answers([item])
        assert sink.put(second) == []
        assert not seen
        assert sink.put(first) == [first, second]  # in the order of the prompts
        assert sink.close() == []
    assert seen == [{"0.txt": f"{first.caption}\n{second.caption}\n"}] * 2
    assert list(read_rows(path)) == [first, second]


@pytest.mark.parametrize("existing", ["skip", "overwrite", "append", "prepend"])
def test_a_run_that_ends_anywhere_is_resumed(images, tmp_path, monkeypatch, existing):
    """The process ends before each of the calls that change something, one after the other."""
    whole = {f"{i}.txt": f"What? {tmp_path}/{i}.jpg\nWhere? {tmp_path}/{i}.jpg\n" for i in range(3)}
    for n_calls in range(12):
        path = tmp_path / f"{n_calls}.jsonl"
        for text in tmp_path.glob("*.txt"):
            text.unlink()
        left = [n_calls]

        def counted(real, left=left):
            def call(*args):
                if left[0] == 0:
                    raise SystemExit
                left[0] -= 1
                return real(*args)

            return call

        with monkeypatch.context() as patched:
            patched.setattr(RowsFile, "append", counted(RowsFile.append))
            patched.setattr(TextFiles, "write", counted(TextFiles.write))
            try:
                run(path, images(), texts=TextFiles(existing))
            except SystemExit:
                assert n_calls < 9
        run(path, images(), texts=TextFiles(existing))
        assert texts_in(tmp_path) == whole
        assert len(path.read_bytes().splitlines()) == 6
        assert set(keys(read_rows(path))) == set(keys(answers(images())))


def test_rows_of_an_interrupted_image_are_kept_without_a_text(path, images, tmp_path):
    with RowsFile(path) as rows:
        sink = Sink(rows=rows, texts=TextFiles(), config_hash=CONFIG)
        (item,) = sink.pending(images(1))
        first, second = answers([item])
        sink.put(first)
        assert sink.close() == [first]
    assert texts_in(tmp_path) == {}
    assert run(path, images(1), texts=TextFiles()) == [("0.jpg", ("What?", "Where?"), "")]
    assert list(texts_in(tmp_path)) == ["0.txt"]
    assert list(read_rows(path)) == [first, second]
    assert len(path.read_bytes().splitlines()) == 2


def test_an_image_of_which_one_prompt_failed_has_no_text(path, images, tmp_path):
    with RowsFile(path) as rows:
        sink = Sink(rows=rows, texts=TextFiles(), config_hash=CONFIG)
        (item,) = sink.pending(images(1))
        failure = made_failure(item.custom_id, "Where?")
        assert sink.put(made_row(item.custom_id)) == []
        assert len(sink.put(failure)) == 2
    assert texts_in(tmp_path) == {}
    assert run(path, images(1), texts=TextFiles()) == []
    assert run(path, images(1), texts=TextFiles(), retry_failed=True) != []
    assert len(texts_in(tmp_path)) == 1
    assert [status for _, _, status in keys(read_rows(path))] == ["ok", "ok"]


def test_a_text_that_cannot_be_written_makes_its_rows_errors(path, images, tmp_path):
    (tmp_path / "0.txt").mkdir()
    run(path, images(2), texts=TextFiles("overwrite"))
    rows = list(read_rows(path))
    assert [status for _, _, status in keys(rows)] == ["error", "error", "ok", "ok"]
    assert "0.txt: cannot be written: Is a directory" in rows[0].error
    assert (rows[0].finish_reason, rows[0].caption) == ("error", f"What? {tmp_path}/0.jpg")
    (tmp_path / "0.txt").rmdir()
    run(path, images(2), texts=TextFiles("overwrite"), retry_failed=True)
    assert {status for _, _, status in keys(read_rows(path))} == {"ok"}
    assert set(texts_in(tmp_path)) == {"0.txt", "1.txt"}


def test_two_images_of_one_name_cost_the_second_one(path, images, tmp_path):
    name = str(tmp_path / "0.png")
    todo = run(path, [*images(1), Item(name, name, name, ("What?",))], texts=TextFiles())
    assert todo[0] == ("0.jpg", ("What?", "Where?"), "")
    assert todo[1][:2] == ("0.png", ("What?",)) and "that of 0.jpg already" in todo[1][2]


def test_rows_decide_what_is_done_where_there_are_both(path, images, tmp_path):
    (tmp_path / "0.txt").write_text("Mine.\n")
    assert len(run(path, images(1), texts=TextFiles())) == 1
    assert texts_in(tmp_path) == {"0.txt": "Mine.\n"}
    assert run(path, images(1), texts=TextFiles("overwrite")) == []


def test_an_image_without_a_file_ends_the_run(path):
    item = Item("a.tar/0.jpg", "a.tar/0.jpg", lambda: b"", ("What?",))
    with pytest.raises(AtpError, match="use --out instead of --txt"):
        run(path, [item], texts=TextFiles())


def test_a_full_disk_ends_the_run(images, tmp_path, monkeypatch):
    def write(*_):
        raise WriteError("full")

    monkeypatch.setattr(TextFiles, "write", write)
    sink = Sink(texts=TextFiles())
    (item,) = sink.pending(images(1, ("What?",)))
    with pytest.raises(WriteError):
        sink.put(made_row(item.custom_id))


def test_items_may_be_drawn_in_another_thread(path, images, tmp_path):
    """As when images are encoded ahead: listing and writing go on at the same time."""
    items, todo = images(40), queue.Queue(maxsize=4)
    with RowsFile(path) as rows:
        sink = Sink(rows=rows, texts=TextFiles(), config_hash=CONFIG)

        def draw():
            for item in sink.pending([*items, *items]):
                todo.put(item)
            todo.put(None)

        thread = threading.Thread(target=draw)
        thread.start()
        while (item := todo.get()) is not None:
            for row in answers([item]):
                sink.put(row)
        thread.join()
        assert sink.close() == []
    assert (rows.n_written, sink.n_repeated) == (80, 40)
    assert list(read_rows(path)) == answers(items)
    assert len(texts_in(tmp_path)) == 40


# ---- texts alone, or nothing


def test_texts_alone(images, tmp_path):
    (tmp_path / "1.txt").write_text("Mine.\n")
    items = images(3)
    sink = Sink(texts=TextFiles())
    todo = list(sink.pending([*items, items[2]]))
    assert [name for name, _, _ in asked(todo)] == ["0.jpg", "2.jpg"]
    assert (sink.n_skipped, sink.n_with_text, sink.n_repeated) == (0, 1, 1)
    for row in answers(todo):
        sink.put(row)
    assert len(texts_in(tmp_path)) == 3
    assert texts_in(tmp_path)["1.txt"] == "Mine.\n"
    assert list(Sink(texts=TextFiles()).pending(items)) == []


def test_rows_that_go_nowhere_come_back(images):
    sink = Sink()
    (item,) = sink.pending(images(1))
    for row in answers([item]):
        assert sink.put(row) == [row]


@pytest.fixture(autouse=True)
def _notes(caplog):
    caplog.set_level(logging.INFO, "atp_cpp")
