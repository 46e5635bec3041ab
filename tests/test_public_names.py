"""The names that the documentation gives to users, and the places that it gave before."""

import importlib
import re
from pathlib import Path

import pytest

import atp_cpp

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# module -> names that earlier documentation told users to import from there
EARLIER = {
    "atp_cpp.batch": ["CaptionBatch"],
    "atp_cpp.batch.load.heap": ["large_blocks_apart"],
    "atp_cpp.batch.source.item": ["Item"],
    "atp_cpp.batch.output.parquet": ["jsonl_to_parquet"],
    "atp_cpp.batch.output.resume": ["read_rows"],
    "atp_cpp.sidecar.sidecar": [
        "AtpSidecar", "fingerprint_from_arrays", "fingerprint_from_gguf", "tensor_shapes",
    ],
    "atp_cpp.convert": ["convert_hf"],
    "atp_cpp._core": ["Cut", "ModelInfo", "Report"],
}  # fmt: skip


def test_every_public_name_is_there():
    for name in atp_cpp.__all__:
        assert getattr(atp_cpp, name) is not None
    with pytest.raises(AttributeError, match="nobody"):
        _ = atp_cpp.nobody


@pytest.mark.parametrize("module", EARLIER)
def test_earlier_places_give_the_same_objects(module):
    for name in EARLIER[module]:
        assert getattr(importlib.import_module(module), name) is getattr(atp_cpp, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_import_from_the_package_alone(page):
    """Users are sent to atp_cpp.NAME; the names they are sent to exist."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        assert not re.search(r"from atp_cpp\.|import atp_cpp\.", block), block
        for names in re.findall(r"from atp_cpp import ([\w, ]+)", block):
            assert {n.strip() for n in names.split(",")} <= set(atp_cpp.__all__), block
    for name in re.findall(r"\batp_cpp\.(\w+)\(", text):
        assert name in atp_cpp.__all__, f"{page.name} names atp_cpp.{name}"
