"""The laws on every architecture of llama.cpp, and the table of what holds: see arch_sweep.py.

The marked part needs the program atp_arch_models (CONTRIBUTING.md). ATP_ARCHS_AT_ONCE: so many
models are examined at once, 2 unless said otherwise.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import make_arch_models
from atp_cpp import _core as core
from support import arch_page, arch_sweep
from support.arch_laws import Findings

GOOD = ("exact", "whole", "refused", "no model")
TABLE = arch_sweep.read_table()
# llama.cpp's vision models, and what they are made of: none of these may fall out of the table
SERVED = "cogvlm gemma3 gemma3n gemma4 hunyuan_vl lfm2 llama llama4-moe qwen2vl qwen3vl qwen35"


@pytest.fixture(scope="module")
def rows(request, tmp_path_factory):
    """A future row for each model whose test was chosen; they are examined side by side."""
    chosen = {
        item.callspec.params["name"]
        for item in request.session.items
        if item.module is request.module
        and hasattr(item, "callspec")
        and "rows" in item.fixturenames
    }
    folder = tmp_path_factory.mktemp("archs")
    writer = make_arch_models.find_writer()
    with ThreadPoolExecutor(int(os.environ.get("ATP_ARCHS_AT_ONCE", "2"))) as pool:
        yield {
            model.name: pool.submit(arch_sweep.examine, writer, model, folder)
            for model in make_arch_models.all_models(writer)
            if model.name in chosen
        }


@pytest.mark.archs
@pytest.mark.parametrize("name", TABLE)
def test_a_model_is_what_the_table_says(rows, name):
    """A better result fails, too: `python tests/support/arch_sweep.py NAME` stores it."""
    assert rows[name].result() == TABLE[name]


@pytest.mark.archs
def test_the_table_has_every_model():
    models = make_arch_models.all_models(make_arch_models.find_writer())
    assert [model.name for model in models] == list(TABLE)


@pytest.mark.archs
def test_the_same_model_is_the_same_bytes(tmp_path):
    writer = make_arch_models.find_writer()
    model = next(m for m in make_arch_models.all_models(writer) if m.name == "mamba")
    first = make_arch_models.write(writer, model, tmp_path).read_bytes()
    assert make_arch_models.write(writer, model, tmp_path).read_bytes() == first


@pytest.mark.archs
@pytest.mark.parametrize("options", [{"flash_attn": "on"}, {"type_v": "q8_0"}], ids=str)
def test_plm_with_flash_attention_is_refused(tmp_path, options):
    """llama.cpp aborts on it, so "auto" stands for off there (the table has it with "auto")."""
    writer = make_arch_models.find_writer()
    model = next(m for m in make_arch_models.all_models(writer) if m.name == "plm")
    path = make_arch_models.write(writer, model, tmp_path)
    with pytest.raises(core.ModelError, match="'plm' without flash attention only; use flash_attn"):
        core.Engine(str(path), n_ctx=64, **options)


def test_no_model_of_the_table_is_wrong_or_aborts():
    assert {row["result"] for row in TABLE.values()} <= set(GOOD)
    assert all(row["reason"] for row in TABLE.values() if row["result"] != "exact")


@pytest.mark.parametrize("name", SERVED.split())
def test_vision_models_are_in_the_table(name):
    assert TABLE[name]["result"] == "exact"
    assert TABLE[name]["cuts"]


def test_the_page_shows_the_table():
    assert arch_sweep.PAGE.read_text("utf-8") == arch_page.page(TABLE)


def findings(**changes):
    found = {"info": {"n_layer": 2, "legal_cuts": [1], "can_batch": True}}
    return found | {"tried": {}, "refused": {}, "broken": []} | changes


def test_rows_of_findings():
    assert arch_sweep.row_of(findings())["result"] == "exact"
    wrong = arch_sweep.row_of(findings(broken=["no leak, cut 1: not equal"]))
    assert wrong == {"result": "wrong", "reason": "no leak, cut 1: not equal"}
    refused = arch_sweep.row_of(
        findings(refused={"model": "cannot load /tmp/x/t5.gguf: an encoder"})
    )
    assert refused == {"result": "refused", "reason": "cannot load t5.gguf: an encoder"}
    info = {"n_layer": 2, "legal_cuts": [], "can_batch": False}
    whole = arch_sweep.row_of(findings(info=info, refused={"cuts": "no border"}))
    assert (whole["result"], whole["reason"], whole["together"]) == ("whole", "no border", False)


@pytest.mark.parametrize(("error", "n_broken"), [(0.0, 0), (1e-3, 1), (np.nan, 1)])
def test_an_error_above_the_limit_and_no_number_break_a_law(error, n_broken):
    found = Findings()
    found.measured("staged = whole", "cut 1", error, 0.0)
    assert len(found.broken) == n_broken


def test_a_process_that_dies_is_a_row(tmp_path, monkeypatch):
    """What a worker was at when it died, and what it said; the run goes on."""
    worker = tmp_path / "arch_worker.py"
    worker.write_text(
        "import os, sys\nprint('trying: load\\ntrying: no leak, cut 2', file=sys.stderr)\n"
        "print('x.cpp:7: GGML_ASSERT(a) failed', file=sys.stderr, flush=True)\nos.abort()\n"
    )
    monkeypatch.setattr(arch_sweep, "WORKER", worker)
    model = make_arch_models.Model("m", "llama", "dense")
    monkeypatch.setattr(make_arch_models, "write", lambda *_: tmp_path / "m.gguf")
    (tmp_path / "m.gguf").touch()
    row = arch_sweep.examine(tmp_path, model, tmp_path)
    assert row["result"] == "aborted"
    assert row["reason"].startswith("no leak, cut 2: exit code ")
    assert row["reason"].endswith("x.cpp:7: GGML_ASSERT(a) failed")
