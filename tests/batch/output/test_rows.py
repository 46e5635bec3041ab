"""A row: its fields, its line of JSON, and what is refused when it is read back."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from atp_cpp.batch.output.rows import Row, failed_row, good_row
from atp_cpp.models.files import ModelFiles
from atp_cpp.options.plan import CutSpec
from support.made_rows import made_row

FIELDS = [
    "custom_id", "image", "sha256",
    "stamp", "prompt", "caption", "parsed", "finish_reason", "status",
    "error", "n_image_tokens", "n_kept", "tokens_mean", "thresholds", "t_load", "t_encode",
    "t_prefill", "t_decode", "kv_bytes", "model", "mmproj", "atp", "policy", "config_hash", "seed",
]  # fmt: skip
NEEDED = ["custom_id", "image", "prompt", "caption", "finish_reason", "status", "config_hash"]
FULL = made_row(
    sha256="ab" * 32,
    parsed={"colour": "red", "n": [1, None]},
    n_kept=[8, 4],
    tokens_mean=7.25,
    thresholds=[[0.5, 0.25, None]],
    kv_bytes=2**40,
    seed=2**32 - 1,
)


def test_the_fields_are_the_agreed_ones_in_the_agreed_order():
    assert list(FULL.as_dict()) == FIELDS
    assert list(json.loads(FULL.as_line())) == FIELDS


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "two\nlines\r\n",
        "\u2028 and \x85 and \x00",
        "日本 🦙",
        'quo"te \\',
        "caf\udce9.jpg",
    ],
)
def test_a_row_comes_back_from_its_line(text):
    row = made_row(text, prompt=text, caption=text, parsed=[text])
    line = row.as_line()
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    line.decode("utf-8")  # also of a name that is not
    assert Row.from_dict(json.loads(line)) == row
    assert Row.from_dict(json.loads(FULL.as_line())) == FULL


def test_a_number_that_is_not_finite_becomes_null():
    row = made_row(parsed={"a": [math.nan, 1.5, math.inf]}, tokens_mean=0.5)
    line = row.as_line().decode()
    assert "NaN" not in line and "Infinity" not in line
    assert json.loads(line)["parsed"] == {"a": [None, 1.5, None]}
    assert json.loads(line)["tokens_mean"] == 0.5


def test_a_field_that_is_not_ours_is_left_out():
    assert Row.from_dict({**FULL.as_dict(), "label": "cat"}) == FULL


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "parsed"])
def test_a_field_of_another_type_is_refused(name):
    for wrong in (None, {"a": 1}, [[["x"]]], True):
        with pytest.raises(ValueError, match=name):
            Row.from_dict({**FULL.as_dict(), name: wrong})


@pytest.mark.parametrize("name", NEEDED)
def test_a_row_without_a_field_that_is_needed(name):
    row = FULL.as_dict()
    del row[name]
    with pytest.raises(ValueError, match=f"{name} is missing"):
        Row.from_dict(row)


def test_a_row_without_the_others():
    needed = {name: FULL.as_dict()[name] for name in NEEDED}
    assert Row.from_dict(needed) == made_row()


def test_a_status_there_is_not():
    with pytest.raises(ValueError, match="status is 'fine'"):
        Row.from_dict({**FULL.as_dict(), "status": "fine"})


def test_a_number_that_no_column_holds():
    with pytest.raises(ValueError, match="seed"):
        Row.from_dict({**FULL.as_dict(), "seed": 2**70})


# ---- rows of captions


FILES = ModelFiles(Path("m.gguf"), Path("p.gguf"))
PLAN = (CutSpec(2, "fastv", 0.25),)


def caption_of(text):
    report = SimpleNamespace(
        n_image_tokens=16, n_kept=(4,), tokens_mean=7.0, thresholds=[(0.5, 0.25, math.inf)],
        t_encode=1.0, t_prefill=2.0, t_decode=3.0, kv_bytes=4096,
    )  # fmt: skip
    return SimpleNamespace(
        text=text, finish_reason="length", report=report, plan=(CutSpec(3, "grid", 0.5),), t_load=5
    )


def test_the_row_of_a_caption():
    row = good_row("cat.jpg", "Who?", caption_of("A cat."), FILES, 7)
    assert (row.custom_id, row.image, row.caption) == ("cat.jpg", "cat.jpg", "A cat.")
    assert (row.status, row.finish_reason, row.error) == ("ok", "length", "")
    assert (row.policy, row.seed, row.n_kept) == ("grid:keep=0.5,after=3", 7, [4])
    assert row.thresholds == [[0.5, 0.25, None]]
    named = good_row(
        "cat.jpg", "Who?", caption_of("{}"), FILES, 7,
        custom_id="c1", sha256="ff", parsed={}, config_hash="cc",
    )  # fmt: skip
    assert (named.custom_id, named.image, named.sha256) == ("c1", "cat.jpg", "ff")
    assert (named.parsed, named.config_hash) == ({}, "cc")


def test_the_row_of_a_failure():
    row = failed_row("cat.jpg", "Who?", "no such file", FILES, 7, plan=PLAN)
    assert (row.custom_id, row.status, row.finish_reason) == ("cat.jpg", "error", "error")
    assert (row.caption, row.error, row.policy) == ("", "no such file", "fastv:keep=0.25,after=2")
    other = failed_row(
        "cat.jpg", "Who?", "bad", FILES, 7,
        plan=(), custom_id="c1", sha256="ff", t_load=2.5, config_hash="cc",
    )  # fmt: skip
    assert (other.custom_id, other.policy, other.t_load) == ("c1", "none", 2.5)
    assert (other.sha256, other.config_hash) == ("ff", "cc")


def test_the_row_of_an_interruption():
    row = failed_row("cat.jpg", "Who?", "interrupted", FILES, 7, plan=PLAN, partial="A c")
    assert (row.caption, row.status, row.finish_reason) == ("A c", "error", "cancelled")
    early = failed_row("cat.jpg", "Who?", "interrupted", FILES, 7, plan=PLAN, cancelled=True)
    assert (early.caption, early.finish_reason) == ("", "cancelled")
