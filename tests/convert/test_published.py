"""The configurations of published checkpoints are read as those that transformers 5 saves."""

import shutil

import pytest

from support.convert_many import convert_many
from support.hf_models import write_tiny
from support.hf_published import PUBLISHED, publish

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """{family: (files of the saved form, files of the published form)}, all of one name."""
    root = tmp_path_factory.mktemp("published")
    folders = []
    for family in PUBLISHED:
        saved, published = (root / form / family for form in ("saved", "published"))
        write_tiny({"idefics3": "smolvlm"}.get(family, family), saved)
        shutil.copytree(saved, published)
        publish(family, published)
        assert (published / "config.json").read_bytes() != (saved / "config.json").read_bytes()
        folders += [saved, published]
    files = convert_many(folders)
    return dict(zip(PUBLISHED, zip(files[::2], files[1::2], strict=True), strict=True))


@pytest.mark.parametrize("family", PUBLISHED)
def test_both_forms_become_the_same_files(family, converted):
    for saved, published in zip(*converted[family], strict=True):
        assert saved.stat().st_size > 100_000
        assert published.read_bytes() == saved.read_bytes()
