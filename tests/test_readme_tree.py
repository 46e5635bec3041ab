"""The tree in the README is the tree on the disk."""

import subprocess

from support.layout import ROOT, drawn_folders

DRAWN = ("csrc/", "python/atp_cpp/")  # folders whose own folders are all drawn


def test_the_readme_draws_the_folders_that_are_there():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    folders = {str(parent) for path in listed if "/" in path for parent in _parents(path)}
    drawn = drawn_folders((ROOT / "README.md").read_text(encoding="utf-8"))
    assert drawn - folders == set(), "drawn, and not there"
    wanted = {f for f in folders if "/" not in f and not f.startswith(".")}
    wanted |= {f for f in folders for d in DRAWN if f.startswith(d) and "/" not in f[len(d) :]}
    assert wanted - drawn == set(), "there, and not drawn"


def _parents(path):
    parts = path.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]
