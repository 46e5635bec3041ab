"""Each module imports only what stands below it, and no two import each other."""

import pytest

from support.layout import circles, drawn_folders, graph, imports_of, modules, step_of

# From the bottom up. A module may import what stands on its own step or on one above it in this
# table; an entry is a module or a folder, and the longest entry that fits counts.
LADDER = [
    ["_core", "errors", "at_exit"],
    ["storage"],  # files that are whole after any end
    ["options"],  # what the user asks for
    ["images"],  # an image -> what the encoder takes
    ["prompts"],  # a question -> the template's text
    ["models"],  # a model's files, before they are loaded
    ["sidecar"],  # trained modules as a file
    ["hub"],  # files of the hub
    ["caption"],  # what comes out for one prompt
    ["batch.run_key"],  # which rows belong to one configuration
    ["session"],  # the loaded model
    ["batch.source"],  # names -> items
    ["batch.load"],  # items -> opened images
    ["batch.output"],  # captions -> rows, files, tables
    ["batch.run"],  # opened images -> captions
    ["chat"],  # messages -> captions
    ["captioner"],  # the public face
    ["caption_batch"],  # the public face for Ray, Daft, Spark
    ["inspect"],  # for a person to read
    ["evaluation"],  # accuracy against tokens
    ["convert"],  # checkpoints -> GGUF
    ["train"],  # learn the modules of a sidecar
    ["cli"],  # the program
]
# Names for users only: they import from anywhere, and no module of ours imports them.
DOORS = {
    "atp_cpp",
    "atp_cpp.__main__",
    "atp_cpp.batch",
    "atp_cpp.batch.heap",
    "atp_cpp.batch.item",
    "atp_cpp.batch.parquet",
    "atp_cpp.batch.resume",
}
EDGES = graph()


def test_no_two_modules_import_each_other():
    assert circles(EDGES) == []


def test_no_module_imports_upwards():
    upwards = [
        f"{name} imports {other}, which stands above it"
        for name, imported in EDGES.items()
        if name not in DOORS
        for other in imported
        if other not in DOORS and step_of(other, LADDER) > step_of(name, LADDER)
    ]
    assert upwards == []


def test_only_users_go_through_the_doors():
    used = {f"{n} imports {o}" for n, i in EDGES.items() if n not in DOORS for o in i & DOORS}
    assert used == set()


def test_every_module_has_its_step():
    assert [n for n in EDGES if n not in DOORS and step_of(n, LADDER) is None] == []
    for entries in LADDER:
        for entry in entries:
            below = (n for n in EDGES if f"{n}.".startswith(f"atp_cpp.{entry}."))
            assert any(below), f"{entry} is on the ladder and nowhere else"


# ---- the helpers find what they are for


@pytest.mark.parametrize(
    "text",
    [
        "import atp_cpp.b\n",
        "from atp_cpp import b\n",
        "from atp_cpp.b import thing\n",
        "def f():\n    from atp_cpp.b import thing\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from atp_cpp import b\n",
    ],
)
def test_imports_are_seen_wherever_they_stand(tmp_path, text):
    (tmp_path / "a.py").write_text(text)
    assert imports_of(tmp_path / "a.py", {"atp_cpp": None, "atp_cpp.b": None}) == {"atp_cpp.b"}


def test_circles_are_found():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"e"}}
    assert circles(edges) == [["a", "b", "c"], ["e"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_the_longest_entry_counts():
    ladder = [["batch.run_key"], ["session"], ["batch"]]
    assert [step_of(f"atp_cpp.{n}", ladder) for n in ("batch.run_key", "session", "batch.run")] == [
        0, 1, 2,
    ]  # fmt: skip
    assert step_of("atp_cpp.sessions", ladder) is None


def test_a_drawn_tree_is_read():
    text = (
        "## What is where\n\n```\na/        the first\n  b/      in a/c or not\n    d/\n"
        "  file    none\ne/\n```\n"
    )
    assert drawn_folders(text) == {"a", "a/b", "a/b/d", "e"}


def test_modules_are_all_there():
    assert {"atp_cpp", "atp_cpp._core", "atp_cpp.session", "atp_cpp.train.run"} <= set(modules())
