"""``atp-cpp convert org/name``: checked by the weights' headers first, then downloaded."""

import json

import gguf
import pytest

from atp_cpp import ConvertError, convert
from support.tiny_llava_hf import write_tiny_llava

pytestmark = pytest.mark.torch


WEIGHTS = "model.safetensors"


@pytest.fixture
def llava(hub, tmp_path):
    """The hub holds a tiny LLaVA."""
    folder = write_tiny_llava(tmp_path / "hf")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA tiny model.\n")
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.large = {WEIGHTS}
    return hub


def sizes(files):
    return {file.path.name: file.size_bytes for file in files}


def test_dry_run_then_the_real_one(llava, tmp_path):
    """The dry run's sizes come from headers alone, and are the real ones to the byte."""
    out = tmp_path / "out"
    planned = sizes(convert.convert_hf("org/tiny", out, dry_run=True))
    assert not out.exists()
    assert [asked.range for asked in llava.gets(WEIGHTS)] == ["bytes=0-100000"]
    files = convert.convert_hf("org/tiny", out)
    assert sizes(files) == planned == {path.name: path.stat().st_size for path in out.iterdir()}
    assert [asked.range for asked in llava.gets(WEIGHTS)][1:] == ["bytes=0-100000", ""]
    again = convert.convert_hf(tmp_path / "hf", tmp_path / "local", model_name="tiny")
    for file, same in zip(files, again, strict=True):
        assert file.path.read_bytes() == same.path.read_bytes()
    keys = gguf.GGUFReader(files[0].path).fields
    assert keys["general.name"].contents() == "tiny"
    assert keys["general.license"].contents() == "apache-2.0"
    assert llava.commit not in files[0].path.read_bytes().decode("latin-1")


def test_what_cannot_be_converted_is_not_downloaded(llava, tmp_path):
    config = json.loads(llava.files["config.json"])
    config["text_config"]["intermediate_size"] += 2
    llava.files["config.json"] = json.dumps(config).encode()
    with pytest.raises(ConvertError, match="has wrong shape"):
        convert.convert_hf("org/tiny", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tiny-f16.gguf").touch()
    with pytest.raises(ConvertError, match="is there already"):
        convert.convert_hf("org/tiny", tmp_path / "out")
    assert all(asked.range for asked in llava.gets(WEIGHTS))
    assert not (tmp_path / "cache" / "models--org--tiny" / "blobs").exists()
