"""SOURCE: a folder here, or a repository of a stand-in for the hub."""

import os
import sys
from pathlib import Path

import pytest

from atp_cpp import ConvertError
from atp_cpp.convert.checkpoint import read_checkpoint
from atp_cpp.convert.source import fetch
from support.checkpoint_files import INDEX, PARTS
from support.hub_standin import BIG, NEEDED, TOKEN, contents, refused

# ---- here


def test_a_folder_here(tmp_path, monkeypatch):
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert fetch("org/tiny") == (Path("org/tiny"), "tiny")  # not the hub's
    assert fetch(str(tmp_path / "org/tiny/")) == (tmp_path / "org/tiny", "tiny")
    assert fetch("org/tiny/../tiny/.") == (Path("org/tiny/../tiny"), "tiny")
    monkeypatch.chdir("org")
    assert fetch(".") == (Path(), "org")
    assert fetch("/")[1] == "model"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch("~/org/tiny") == (tmp_path / "org/tiny", "tiny")
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ConvertError, match="is a GGUF file already"):
        read_checkpoint(*fetch(str(tmp_path / "model.gguf")))


def test_a_snapshot_of_the_cache_has_its_repositorys_name(tmp_path):
    folder = tmp_path / "models--llava-hf--llava-1.5-7b-hf" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    assert fetch(str(folder)) == (folder, "llava-1.5-7b-hf")


def test_a_folder_has_no_revision(tmp_path):
    message = refused(str(tmp_path), revision="main")
    assert "is a local folder, which has no revisions; leave --revision main out" in message


@pytest.mark.parametrize(
    "source", ["none", "./none", "../none", "a/b/c", "/none/at/all", "org/", "", "a b/c", "~none"]
)
def test_neither_a_folder_nor_an_id(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(source)
    assert message.startswith(f"{source}: no folder ")
    assert "and no hub id, which is org/name" in message


def test_without_the_hub_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = refused("org/tiny")
    assert f"no folder {tmp_path / 'org/tiny'}" in message
    assert 'pip install "atp_cpp[convert]", which brings it and all else' in message
    assert "[hub]" not in message


ADDRESS = "https://a-hub.example/org/tiny"


@pytest.mark.parametrize(
    "address",
    [
        ADDRESS,
        f"{ADDRESS}/",
        f"{ADDRESS}/tree/main",
        f"{ADDRESS}?library=x",
        "HTTP://h/org/tiny#use",
    ],
)
def test_an_address_from_a_browser(hub, address):
    assert fetch(address) == fetch("org/tiny")


def test_an_address_names_a_revision(hub):
    fetch(f"{ADDRESS}/tree/v1")
    assert any(asked.path.endswith("/revision/v1") for asked in hub.asked)
    assert "has no revision v9" in refused(f"{ADDRESS}/tree/v9")
    assert "leave one out" in refused(f"{ADDRESS}/tree/v1", revision="main")
    fetch(f"{ADDRESS}/blob/v1/config.json", revision="v1")


@pytest.mark.parametrize("path", ["", "/org", "/datasets/org/tiny", "/spaces/org/tiny"])
def test_an_address_of_something_else(path):
    address = f"https://a-hub.example{path}"
    message = refused(address)
    assert message == f"{address}: expected the address of a model's repository, or org/name"


# ---- what is downloaded


def test_download(hub, tmp_path, capfd):
    folder, name = fetch("org/tiny")
    assert name == "tiny"
    assert contents(folder) == {name: hub.files[name] for name in NEEDED}
    assert set(read_checkpoint(folder, name).tensors) == set(BIG)
    assert folder.is_relative_to(tmp_path / "cache" / "models--org--tiny" / "snapshots")
    assert [len(hub.gets(part)) for part in PARTS] == [1, 1]
    assert not any("original" in asked.path for asked in hub.asked)
    hub.asked.clear()
    assert fetch("org/tiny") == (folder, name)
    assert fetch("org/tiny", revision="v1") == (folder, name)
    assert fetch("org/tiny", revision=hub.commit) == (folder, name)
    assert not any("resolve" in asked.path for asked in hub.asked)  # all is there
    assert capfd.readouterr() == ("", "")  # no terminal, no bar


def test_the_hubs_own_client_finds_what_we_downloaded(hub):
    from huggingface_hub import snapshot_download

    folder, _ = fetch("org/tiny")
    hub.asked.clear()
    assert snapshot_download("org/tiny", local_files_only=True, allow_patterns=NEEDED) == str(
        folder
    )
    assert hub.asked == []


def test_only_one_kind_of_weights(hub):
    hub.files |= {"pytorch_model.bin": b"x", "consolidated.safetensors": b"x", "model.onnx": b"x"}
    hub.files |= {"chat_template.jinja": b"{}", "tokenizer.model": b"x", "merges.txt": b"x"}
    hub.files |= {"modeling_tiny.py": b"x", "additional_chat_templates/tool.jinja": b"x"}
    folder, _ = fetch("org/tiny")
    extra = {"chat_template.jinja", "tokenizer.model", "merges.txt", "additional_chat_templates"}
    assert {path.name for path in folder.iterdir()} == NEEDED | extra


def test_torch_files_where_there_is_nothing_else(hub):
    for part in (*PARTS, INDEX):
        del hub.files[part]
    hub.files |= {"pytorch_model.bin": b"x", "optimizer.bin": b"x"}
    hub.large |= {"pytorch_model.bin"}
    folder, _ = fetch("org/tiny")
    there = {"README.md", "config.json", "tokenizer.json", "pytorch_model.bin"}
    assert set(contents(folder)) == there


def test_torch_files_are_downloaded_after_a_look_at_the_rest(hub):
    for part in (*PARTS, INDEX):
        del hub.files[part]
    hub.files["pytorch_model.bin"] = b"x"
    hub.large |= {"pytorch_model.bin"}

    def look(folder, name):
        assert name == "tiny"
        assert {"config.json", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
        assert not list(folder.glob("*.bin"))
        raise ConvertError("seen")

    assert refused("org/tiny", before_download=look) == "seen"
    assert hub.gets("pytorch_model.bin") == []


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["README.md"], "has no config.json; expected a transformers checkpoint"),
        (["tiny-f16.gguf"], "it holds GGUF files, which need no conversion"),
        (["adapter_config.json"], "merge it into its base model"),
        (["config.json", "sub/model.safetensors"], "org/tiny has no weights; expected model*"),
    ],
)
def test_no_checkpoint_in_it(hub, files, reason):
    hub.files = dict.fromkeys(files, b"{}")
    assert reason in refused("org/tiny")
    assert len(hub.asked) == 1  # before anything is downloaded


# ---- a dry run


def test_dry_run_has_the_headers_and_no_data(hub, tmp_path, caplog):
    caplog.set_level("INFO", "atp_cpp")
    folder, name = fetch("org/tiny", dry_run=True)
    assert name == "tiny"
    assert not (tmp_path / "cache" / "models--org--tiny" / "blobs").exists()
    hollow = read_checkpoint(folder, name)
    assert (folder / "config.json").read_bytes() == hub.files["config.json"]
    for part in PARTS:
        assert os.stat(folder / part).st_blocks * 512 < 20_000 < os.stat(folder / part).st_size
    listed = caplog.text
    for part in PARTS:
        assert f"{part} ({len(hub.files[part]) / 1000:.2f} kB)" in listed
    real = read_checkpoint(*fetch("org/tiny"))
    assert (hollow.tensors, hollow.config) == (real.tensors, real.config)
    assert hollow.n_bytes == real.n_bytes == sum(array.nbytes for array in BIG.values())
    assert fetch("org/tiny", dry_run=True)[0] == real.folder  # now that it is there


def test_dry_run_asks_for_the_headers_only(hub):
    fetch("org/tiny", dry_run=True)
    assert not any(asked.path.startswith("/store/") and not asked.range for asked in hub.asked)
    assert [asked.range for asked in hub.gets(PARTS[0])] == ["bytes=0-100000"]


def test_dry_run_of_torch_files(hub):
    for part in (*PARTS, INDEX):
        del hub.files[part]
    hub.files["pytorch_model.bin"] = b"x"
    message = refused("org/tiny", dry_run=True)
    assert "pytorch_model.bin" in message and "convert without --dry-run" in message


# ---- a look before the download


def test_a_look_before_the_download(hub):
    seen = []

    def look(folder, name):
        read = read_checkpoint(folder, name)
        seen.append((folder, name, read.tensors, list(hub.asked)))

    folder, name = fetch("org/tiny", before_download=look)
    ((hollow, seen_name, tensors, asked),) = seen
    assert hollow != folder and not hollow.exists()
    assert (seen_name, tensors) == (name, read_checkpoint(folder, name).tensors)
    assert not any(a.path.startswith("/store/") and not a.range for a in asked)
    fetch("org/tiny", before_download=look)
    assert len(seen) == 1  # nothing to download


def test_what_it_raises_stops_the_download(hub, tmp_path):
    def look(folder, name):
        raise ConvertError(f"{name} will not do")

    assert refused("org/tiny", before_download=look) == "tiny will not do"
    assert not (tmp_path / "cache" / "models--org--tiny" / "blobs").exists()


# ---- refusals


def test_no_such_repository(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused("org/none")
    assert f"org/none: no folder {tmp_path / 'org/none'}, and no such repository at {hub.url}" in (
        message
    )
    assert "or it is private and no token is set" in message
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "the token in use has no access" in refused("org/none")


def test_private(hub, monkeypatch):
    hub.private = True
    assert "or it is private and no token is set" in refused("org/tiny")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    read_checkpoint(*fetch("org/tiny"))
    assert {asked.token for asked in hub.asked if asked.path.startswith("/store/")} == {""}


@pytest.mark.parametrize("dry_run", [False, True])
def test_gated(hub, tmp_path, monkeypatch, dry_run):
    hub.gated = True
    message = refused("org/tiny", dry_run=dry_run)
    assert f"org/tiny is gated and no token is set; accept its terms at {hub.url}/org/tiny" in (
        message
    )
    assert "hf auth login" in message
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "is gated and the token in use has no access" in refused("org/tiny", dry_run=dry_run)
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "no_token").write_text(TOKEN)  # as `hf auth login` leaves it
    read_checkpoint(*fetch("org/tiny", dry_run=dry_run))


def test_no_such_revision(hub):
    message = refused("org/tiny", revision="v9")
    assert "org/tiny has no revision v9; --revision takes one of its branches" in message


@pytest.mark.parametrize("repo", ["org/-tiny", "org/ti--ny", "org/" + "x" * 100, "org/tiny.git"])
def test_an_id_that_the_hub_does_not_allow(hub, repo):
    assert f"{repo} is no folder and no hub id: " in refused(repo)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("status", "advice"), [(401, ""), (403, "log in"), (429, "wait"), (500, ""), (503, "")]
)
def test_the_hub_fails(hub, status, advice):
    hub.status = status
    message = refused("org/tiny")
    assert advice in message
    if status != 401:  # which the hub says of everything it does not show
        assert f"org/tiny: {hub.url} answered {status}; " in message


# ---- without a hub


def unreachable(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def test_connection_refused(hub, monkeypatch):
    unreachable(hub, monkeypatch)
    message = refused("org/tiny")
    assert message.startswith("org/tiny: the connection to http://127.0.0.1:9 failed (")
    assert "broke off" not in message  # nothing had begun


@pytest.mark.parametrize("dry_run", [False, True])
def test_unreachable_but_cached(hub, monkeypatch, caplog, dry_run):
    folder, name = fetch("org/tiny")
    unreachable(hub, monkeypatch)
    assert fetch("org/tiny", dry_run=dry_run) == (folder, name)
    assert "cannot be reached; taking org/tiny from the cache" in caplog.text


@pytest.mark.parametrize("dry_run", [False, True])
def test_offline(hub, tmp_path, monkeypatch, dry_run):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refused("org/tiny", dry_run=dry_run)
    assert f"org/tiny is not in the cache {tmp_path / 'cache'}, and the hub is offline" in message
    assert "unset HF_HUB_OFFLINE" in message
    assert "org/tiny at revision v1 is not" in refused("org/tiny", revision="v1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder, _ = fetch("org/tiny")
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("org/tiny", dry_run=dry_run) == (folder, "tiny")
    assert hub.asked == []
