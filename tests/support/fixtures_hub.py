"""A hub that holds one checkpoint; huggingface_hub, and so we, know no other."""

import pytest

from support.checkpoint_files import PARTS, write_checkpoint
from support.hub_standin import BIG, Hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in, with a checkpoint in two shards; huggingface_hub knows no other hub."""
    import huggingface_hub
    from huggingface_hub import constants

    folder = write_checkpoint(tmp_path / "upstream", sharded=True, tensors=BIG)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files |= {"README.md": b"hello", "original/consolidated.safetensors": b"x" * 10}
    standin = Hub(files, {*PARTS, "original/consolidated.safetensors"})
    server = standin.start()
    monkeypatch.setattr(constants, "ENDPOINT", standin.url)
    template = standin.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # what a break may lose
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's attempts
    assert huggingface_hub.HfApi().endpoint == standin.url
    yield standin
    server.shutdown()
    server.server_close()
