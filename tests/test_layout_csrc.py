"""The folders of csrc/ form a ladder: each includes its own headers and those below it only."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
CMAKE = (CSRC / "CMakeLists.txt").read_text(encoding="utf-8")
LADDER = [*re.search(r"^set\(ATP_LADDER ([^)]+)\)", CMAKE, re.M)[1].split(), "bindings"]
SOURCES = sorted(p.relative_to(CSRC) for s in ("*.h", "*.cpp") for p in CSRC.rglob(s))
LLAMA_PRIVATE = Path("llama/llama_private.h")
# what ggml, llama.cpp and mtmd offer to everybody
PUBLIC = {
    "common.h",
    "ggml-alloc.h",
    "ggml-backend.h",
    "ggml-cpp.h",
    "ggml-cpu.h",
    "ggml-rpc.h",
    "ggml.h",
    "gguf.h",
    "hash/hash.h",
    "json-schema-to-grammar.h",
    "llama-cpp.h",
    "llama.h",
    "mtmd-helper.h",
    "mtmd.h",
}
PYTHON = re.compile(r"[<\"](pybind11/|Python\.h)")


def includes(source):
    text = (CSRC / source).read_text(encoding="utf-8")
    return re.findall(r'^#\s*include "([^"]+)"', text, re.M)


def is_ours(name):
    return name.split("/")[0] in LADDER


def test_every_folder_stands_in_the_ladder():
    assert {p.name for p in CSRC.iterdir() if p.is_dir()} == set(LADDER)


def test_every_source_has_a_folder():
    assert [str(p) for p in SOURCES if len(p.parts) != 2] == []
    assert {p.parts[0] for p in SOURCES} == set(LADDER)


@pytest.mark.parametrize("folder", LADDER)
def test_nothing_above_is_included(folder):
    below = LADDER[: LADDER.index(folder) + 1]
    sources = [p for p in SOURCES if p.parts[0] == folder]
    for source in sources:
        for name in includes(source):
            if is_ours(name):
                assert name.split("/")[0] in below, f"{source} includes {name}"
                assert (CSRC / name).is_file(), f"{source} includes {name}"


def test_what_is_not_ours_is_llama_cpps():
    """So that no header is included without its folder, or by a way around the include path."""
    for source in SOURCES:
        for name in includes(source):
            assert is_ours(name) or name in PUBLIC or source == LLAMA_PRIVATE, f"{source}: {name}"


@pytest.mark.parametrize("folder", LADDER[: LADDER.index("llama")])
def test_what_is_below_llama_knows_no_llama_cpp(folder):
    for source in SOURCES:
        if source.parts[0] == folder:
            assert [name for name in includes(source) if not is_ours(name)] == [], source


def test_stages_know_no_policies():
    """Of prune/ they take the kinds of scores that they compute, and nothing that decides."""
    stages = [p for p in SOURCES if p.parts[0] == "stages"]
    taken = {name for p in stages for name in includes(p) if name.startswith("prune/")}
    assert taken == {"prune/score_kind.h"}


def test_python_is_known_to_the_bindings_alone():
    text = {p: (CSRC / p).read_text(encoding="utf-8") for p in SOURCES}
    assert {p.parts[0] for p in SOURCES if PYTHON.search(text[p])} == {"bindings"}


def test_no_two_headers_need_each_other():
    """A header and its source count as one."""
    uses = {}
    for source in SOURCES:
        needs = {Path(name).with_suffix("") for name in includes(source) if is_ours(name)}
        uses.setdefault(source.with_suffix(""), set()).update(needs)
    rest = {unit: needs - {unit} for unit, needs in uses.items()}
    while rest:
        free = {unit for unit, needs in rest.items() if not needs & rest.keys()}
        assert free, f"each of these needs another of them: {sorted(map(str, rest))}"
        rest = {unit: needs for unit, needs in rest.items() if unit not in free}
