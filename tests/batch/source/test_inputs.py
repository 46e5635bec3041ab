"""What a user names becomes items: kinds of input, order, shards, counts, and clear refusals."""

import io
import itertools
import json
import os
import random
import sys
import tarfile

import pytest

from atp_cpp.batch.source import inputs
from atp_cpp.batch.source.inputs import count_of, items_of
from atp_cpp.errors import AtpError


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of inputs, which is the present one."""
    for name in ("p/b.jpg", "p/a.png", "p/notes.txt", "p/in/c.webp", "odd.dat", "x[1].jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name in ("1.jpg", "1.txt", "2.jpg"):
            archive.addfile(tarfile.TarInfo(name))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def items(*paths, **options):
    return list(items_of(paths, prompts=options.pop("prompts", "What?"), **options))


def ids(*paths, **options):
    return [item.custom_id for item in items(*paths, **options)]


def refusal(*paths, **options):
    with pytest.raises(AtpError) as caught:
        items(*paths, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- kinds of input


def test_files_are_taken_whatever_their_suffix(here):
    assert ids("odd.dat", "p/b.jpg", "p/notes.txt") == ["odd.dat", "p/b.jpg", "p/notes.txt"]


def test_an_item_of_a_file(here):
    (item,) = items("p/b.jpg", prompts=["A?", "B?"])
    assert (item.custom_id, item.image, item.source) == ("p/b.jpg",) * 3
    assert item.prompts == ("A?", "B?")
    assert item.error == ""


def test_folders(here):
    assert ids("p") == ids("p/") == ["p/a.png", "p/b.jpg"]
    assert ids("p", recursive=True) == ["p/a.png", "p/b.jpg", "p/in/c.webp"]
    assert ids(".") == ["./x[1].jpg"]


def test_order_is_that_of_the_names(here):
    assert ids("p/in", "odd.dat", "p") == ["p/in/c.webp", "odd.dat", "p/a.png", "p/b.jpg"]


def test_patterns_stand_for_images_and_archives(here):
    assert ids("p/*") == ["p/a.png", "p/b.jpg"]
    assert ids("**/*") == [
        "s.tar/1.jpg", "s.tar/2.jpg", "x[1].jpg", "p/a.png", "p/b.jpg", "p/in/c.webp",
    ]  # fmt: skip
    assert ids("*.tar") == ["s.tar/1.jpg", "s.tar/2.jpg"]


def test_a_file_named_like_a_pattern_is_itself(here):
    assert ids("x[1].jpg") == ["x[1].jpg"]
    (here / "x1.jpg").touch()
    assert ids("x[1].jpg") == ["x[1].jpg"]
    (here / "x[1].jpg").unlink()
    assert ids("x[1].jpg") == ["x1.jpg"]


def test_archives(here):
    assert ids("s.tar") == ["s.tar/1.jpg", "s.tar/2.jpg"]


def test_a_name_that_does_not_exist_is_left_to_its_row(here):
    assert ids("none.jpg", "none.tar", "p/b.jpg") == ["none.jpg", "none.tar", "p/b.jpg"]


@pytest.mark.parametrize("name", ["http://x.org/a.jpg?size=3", "https://x.org/*"])
def test_a_web_address_is_left_to_its_row(here, name):
    assert ids(name) == [name]


def test_filelist(here):
    (here / "l").write_bytes(b"p/b.jpg\r\n\nodd.dat\nnone.jpg\np/in\ns.tar\nx[1].jpg\n*.dat\n")
    assert ids(filelist="l") == [
        "p/b.jpg", "odd.dat", "none.jpg", "p/in/c.webp", "s.tar/1.jpg", "s.tar/2.jpg", "x[1].jpg",
        "*.dat",  # a list holds no patterns
    ]  # fmt: skip


def test_paths_in_a_filelist_start_from_the_present_folder(here):
    (here / "p/l").write_text("p/b.jpg\n")
    (item,) = items(filelist="p/l")
    assert os.path.exists(item.source)
    assert item.custom_id == "p/b.jpg"


def test_filelist_from_stdin(here, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"p/b.jpg\n")))
    assert ids(filelist="-") == ["p/b.jpg"]


def test_names_in_a_filelist_that_are_no_utf8(here):
    name = b"caf\xe9.jpg"
    (here / "l").write_bytes(name)
    with open(name, "wb"):
        pass
    (item,) = items(filelist="l")
    assert os.path.exists(item.source)


def test_a_folder_without_images_in_a_list_costs_only_its_row(here):
    (here / "empty").mkdir()
    (here / "l").write_text("empty\np/b.jpg\n")
    bad, good = items(filelist="l")
    assert bad.custom_id == "empty"
    assert "no image in this folder" in bad.error
    assert good.custom_id == "p/b.jpg"


def test_jsonl(here):
    lines = [
        {"image": "b.jpg"},
        {"image": "b.jpg", "custom_id": "x", "prompts": ["A?", "B?"]},
        {"nothing": 1},
        {"image": "/abs.jpg", "prompt": "C?"},
    ]
    (here / "p/l.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    one, two, bad, last = items(jsonl="p/l.jsonl")
    assert (one.custom_id, one.source, one.prompts) == ("b.jpg", "p/b.jpg", ("What?",))
    assert (two.custom_id, two.source, two.prompts) == ("x", "p/b.jpg", ("A?", "B?"))
    assert bad.custom_id == "p/l.jsonl:3"
    assert bad.error.startswith("p/l.jsonl:3: expected the path")
    assert (last.source, last.prompts) == ("/abs.jpg", ("C?",))


def test_jsonl_from_stdin_starts_from_the_present_folder(here, monkeypatch):
    text = b'{"image": "p/b.jpg"}\n{\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    one, bad = items(jsonl="-")
    assert one.source == "p/b.jpg"
    assert bad.custom_id == "stdin:2"


def test_all_kinds_at_once(here):
    (here / "l").write_text("odd.dat\n")
    (here / "j").write_text('{"image": "x[1].jpg"}')
    assert ids("p/in", "s.tar", filelist="l", jsonl="j") == [
        "p/in/c.webp", "s.tar/1.jpg", "s.tar/2.jpg", "odd.dat", "x[1].jpg",
    ]  # fmt: skip


# ---- refusals


def test_nothing_named():
    assert "no image named" in refusal()


def test_no_prompt(here):
    assert "no prompt" in refusal("p", prompts=[])


def test_a_folder_without_images_is_refused_with_what_was_looked_for(here):
    (here / "e").mkdir()
    assert refusal("p", "e").startswith("e: no image in this folder; looked for files ending in .j")
    (here / "e/.hidden.jpg").touch()
    assert "no image in this folder" in refusal("e")
    (here / "e/a.tar").touch()
    assert "e/*.tar" in refusal("e")
    (here / "e/deeper").mkdir()
    assert "--recursive" in refusal("e")
    assert "--recursive" not in refusal("e", recursive=True)


@pytest.mark.parametrize("pattern", ["*.gif", "none/*", "p/*.txt", "**/*.gif", "none[1].jpg"])
def test_a_pattern_without_images_is_refused(here, pattern):
    text = refusal(pattern)
    assert text.startswith(f"{pattern}: no such file, and as a pattern it matches no image")


def test_refusals_come_before_the_first_item(here):
    (here / "e").mkdir()
    with pytest.raises(AtpError):
        items_of(["p", "e"], prompts="x")
    with pytest.raises(AtpError):
        items_of(["p"], prompts="x", jsonl="none.jsonl")
    with pytest.raises(AtpError):
        items_of(["p"], prompts="x", shard=(0, 2))


@pytest.mark.parametrize("kind", ["filelist", "jsonl"])
def test_lists_that_cannot_be_used(here, kind):
    assert "no such file; check the path of the list" in refusal(**{kind: "none"})
    assert "got a folder" in refusal(**{kind: "p"})
    (here / "l").write_bytes(b"\n\n")
    assert refusal(**{kind: "l"}) == "l: no image is named in it"


def test_stdin_cannot_be_two_lists():
    assert "not both" in refusal(filelist="-", jsonl="-")


def test_a_folder_that_may_not_be_listed_is_an_item(here, monkeypatch):
    scandir = os.scandir

    def refusing(path):
        if path == "p/in":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    *good, bad = items("p", recursive=True)
    assert len(good) == 2
    assert bad.custom_id == "p/in"
    assert "no permission" in bad.error
    (alone,) = items("p/in")  # not "no image": nobody knows
    assert "no permission" in alone.error


# ---- shards and counts


@pytest.fixture
def many(here):
    (here / "l").write_text("".join(f"{i}.jpg\n" for i in range(300)))
    (here / "j").write_text("".join(f'{{"image": "{i}.png"}}\n' for i in range(300)))
    return {"paths": ["p", "s.tar"], "filelist": "l", "jsonl": "j"}


@pytest.mark.parametrize("n", [1, 2, 7])
def test_every_item_is_in_exactly_one_shard_and_order_stays(many, n):
    paths, lists = many.pop("paths"), many
    with open("s.tar", "r+b") as stream:
        stream.truncate(1100)  # after one image; the rest is told of in one item
    whole = ids(*paths, **lists)
    parts = [ids(*paths, **lists, shard=(i + 1, n)) for i in range(n)]
    assert sorted(itertools.chain(*parts)) == sorted(whole)
    place = {custom_id: at for at, custom_id in enumerate(whole)}
    for part in parts:
        assert part == sorted(part, key=place.__getitem__)
        assert abs(len(part) - len(whole) / n) < 6 * (len(whole) / n) ** 0.5


def test_shards_do_not_depend_on_the_order_of_names(here):
    names = [f"{i}.jpg" for i in range(50)]
    mixed = random.Random(1).sample(names, len(names))
    assert sorted(ids(*names, shard=(2, 3))) == sorted(ids(*mixed, shard=(2, 3)))


def test_an_empty_shard_is_no_mistake(here):
    parts = [ids("p/b.jpg", shard=(i + 1, 5)) for i in range(5)]
    assert sorted(parts) == [[], [], [], [], ["p/b.jpg"]]
    (here / "l").write_text("p/b.jpg\n")
    assert sorted(ids(filelist="l", shard=(i + 1, 5)) for i in range(5)) == sorted(parts)


@pytest.mark.parametrize("shard", [None, (1, 3), (3, 3)])
def test_the_count_is_the_number_of_items(many, shard):
    lists = {"filelist": many["filelist"], "jsonl": many["jsonl"], "shard": shard}
    for options in ({}, {"recursive": True}):
        n = len(ids("p", "**/*.jpg", "none.jpg", **lists, **options))
        assert count_of(["p", "**/*.jpg", "none.jpg"], **lists, **options) == n


def test_what_is_not_counted(here, monkeypatch):
    assert count_of(["p", "s.tar"]) is None
    (here / "l").write_text("p/b.jpg\ns.tar\n")
    assert count_of([], filelist="l") is None
    assert count_of(["p"], filelist="-") is None
    assert count_of(["p"], jsonl="-") is None
    os.mkfifo(here / "pipe")
    assert count_of(["p"], filelist="pipe") is None


def test_counting_refuses_like_listing(here):
    (here / "e").mkdir()
    with pytest.raises(AtpError, match="no image in this folder"):
        count_of(["e"])


# ---- laziness


def test_later_inputs_are_not_touched_before_their_turn(here, monkeypatch):
    opened = []
    lines_of = inputs.lines_of
    monkeypatch.setattr(inputs, "lines_of", lambda name: opened.append(name) or lines_of(name))
    (here / "l").write_text("odd.dat\n")
    listing = items_of(["p"], prompts="x", filelist="l")
    assert next(listing).custom_id == "p/a.png"
    assert next(listing).custom_id == "p/b.jpg"
    assert not opened
    assert next(listing).custom_id == "odd.dat"
    assert opened == ["l"]


def test_an_endless_list_is_fine(here, monkeypatch):
    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            buffer[:] = (b"p/b.jpg\n" * (len(buffer) // 8 + 1))[: len(buffer)]
            return len(buffer) // 8 * 8

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Endless())))
    listing = items_of([], prompts="x", filelist="-")
    assert [next(listing).custom_id for _ in range(1000)] == ["p/b.jpg"] * 1000


# ---- what is no image here


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    """A folder with an image and much that a user may take for one."""
    monkeypatch.setattr("atp_cpp.batch.source.folders.image_suffixes", lambda: frozenset({".jpg"}))
    names = ["a.jpg", "b.HEIC", "c.heic", "d.pdf", "e.svg", "f.mp4", "g.jxl", "h.CR2", "i.txt"]
    (tmp_path / "in").mkdir()
    for name in [*names, "in/j.mov", ".hidden.pdf"]:
        (tmp_path / name).touch()
    return tmp_path


def note_of(caplog):
    (text,) = (r.getMessage() for r in caplog.records if "passed over" in r.getMessage())
    return text


def test_what_is_passed_over_is_one_note_with_counts_and_remedies(mixed, caplog):
    (item,) = items_of([str(mixed)], prompts="?")
    assert item.image.endswith("a.jpg")
    note = note_of(caplog)
    for part in ("2 HEIC photos (pip install pillow-heif", "1 PDF documents (pdftoppm", "1 videos",
                 "1 vector drawings", "1 JPEG XL pictures", "1 camera raw files"):  # fmt: skip
        assert part in note
    assert ".txt" not in note


def test_what_is_passed_over_further_in_and_by_a_pattern(mixed, caplog):
    list(items_of([str(mixed)], prompts="?", recursive=True))
    assert "2 videos" in note_of(caplog)
    caplog.clear()
    list(items_of([str(mixed / "*")], prompts="?"))
    assert "2 HEIC photos" in note_of(caplog)


def test_images_alone_are_no_note(mixed, caplog):
    list(items_of([str(mixed / "*.jpg"), str(mixed / "b.HEIC")], prompts="?"))
    assert caplog.text == ""


@pytest.mark.parametrize("path", ["in", "*.pdf"])
def test_nothing_but_what_is_passed_over_is_an_error_that_says_so(mixed, path):
    with pytest.raises(AtpError, match=r"passed over: 1 (videos|PDF documents)"):
        items_of([str(mixed / path)], prompts="?")
