"""A download that was cut goes on where it ended; its space is checked before."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

import atp_cpp
from atp_cpp.convert.checkpoint import read_checkpoint
from atp_cpp.convert.source import fetch
from support.checkpoint_files import PARTS
from support.hub_standin import NEEDED, TOKEN, contents, refused


def test_a_broken_connection_resumes(hub):
    size = len(hub.files[PARTS[1]])
    hub.cuts[PARTS[1]] = [70_000, 30_000]
    folder, _ = fetch("org/tiny")
    assert contents(folder) == {name: hub.files[name] for name in NEEDED}
    ranges = [asked.range for asked in hub.gets(PARTS[1])]
    assert ranges == ["", "bytes=70000-", "bytes=100000-"]
    assert size > 100_000


def test_the_next_run_resumes(hub, tmp_path):
    hub.cuts[PARTS[1]] = [70_000] + [0] * 20
    message = refused("org/tiny")
    assert message.startswith(f"org/tiny: the download from {hub.url} broke off (")
    assert message.endswith("check the connection and run again: it resumes")
    (partial,) = (tmp_path / "cache").rglob("*.incomplete")
    n_here = partial.stat().st_size
    assert n_here == 70_000
    hub.cuts.clear()
    hub.asked.clear()
    folder, _ = fetch("org/tiny")
    assert contents(folder) == {name: hub.files[name] for name in NEEDED}
    assert hub.gets(PARTS[0]) == []  # was complete
    assert [asked.range for asked in hub.gets(PARTS[1])] == [f"bytes={n_here}-"]
    assert list((tmp_path / "cache").rglob("*.incomplete")) == []


def partial_of(hub, tmp_path, content):
    """What an earlier run may have left of the second shard."""
    blobs = tmp_path / "cache" / "models--org--tiny" / "blobs"
    blobs.mkdir(parents=True)
    name = hashlib.sha256(hub.files[PARTS[1]]).hexdigest()
    (blobs / f"{name}.incomplete").write_bytes(content)
    return blobs / f"{name}.incomplete"


def test_interrupted_after_the_last_byte(hub, tmp_path):
    partial_of(hub, tmp_path, hub.files[PARTS[1]])
    fetch("org/tiny")
    assert hub.gets(PARTS[1]) == []


@pytest.mark.parametrize("n_more", [-1, 0, 1])
def test_a_damaged_rest_is_thrown_away(hub, tmp_path, n_more):
    whole = hub.files[PARTS[1]]
    partial = partial_of(hub, tmp_path, bytes(len(whole) + n_more))
    if n_more == 1:  # no part of the file at all: starts anew
        folder, _ = fetch("org/tiny")
    else:
        assert f"{PARTS[1]} arrived damaged and was removed; run again" in refused("org/tiny")
        assert not partial.exists()
        folder, _ = fetch("org/tiny")
    assert contents(folder)[PARTS[1]] == whole


def test_a_file_that_arrives_damaged(hub, tmp_path):
    hub.spoil = {PARTS[0]}
    assert f"{PARTS[0]} arrived damaged and was removed; run again" in refused("org/tiny")
    assert list((tmp_path / "cache").rglob("*.incomplete")) == []
    hub.spoil = set()
    read_checkpoint(*fetch("org/tiny"))


def test_interrupted_by_the_user(hub, tmp_path, monkeypatch):
    from atp_cpp.hub import checkpoint as ours

    def stopped(location, stream, **_):
        stream.write(hub.files[PARTS[0]][:1000])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ours, "http_get", stopped)
        with pytest.raises(KeyboardInterrupt):
            fetch("org/tiny")
    fetch("org/tiny")
    assert [asked.range for asked in hub.gets(PARTS[0])] == ["bytes=1000-"]


# ---- space

Usage = namedtuple("Usage", "total used free")


def test_space_is_checked_before_the_first_byte(hub, tmp_path, monkeypatch):
    needed = sum(len(hub.files[name]) for name in NEEDED)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed - 1))
    message = refused("org/tiny")
    assert message.startswith(f"{tmp_path / 'cache'}: not enough space to download org/tiny: ")
    assert f"expected {needed / 1000:.2f} kB, got {(needed - 1) / 1000:.2f} kB free" in message
    assert "HF_HUB_CACHE" in message
    assert not (tmp_path / "cache").exists()
    assert len(hub.asked) == 1
    partial_of(hub, tmp_path, hub.files[PARTS[1]][:1000])
    fetch("org/tiny")  # a thousand bytes are there already


def test_the_disk_fills_up(hub, tmp_path, monkeypatch):
    from atp_cpp.hub import checkpoint as ours

    def full(location, stream, **_):
        stream.write(hub.files[PARTS[0]][:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ours, "http_get", full)
        message = refused("org/tiny")
    assert f"no space left in the cache {tmp_path / 'cache'} (No space left on device)" in message
    assert "run again: the download resumes" in message
    fetch("org/tiny")
    assert [asked.range for asked in hub.gets(PARTS[0])] == ["bytes=1000-"]


def test_the_cache_cannot_be_written(hub, tmp_path):
    (tmp_path / "cache").touch()
    message = refused("org/tiny")
    assert message.startswith(f"{tmp_path / 'cache'}")
    assert "cannot be written: " in message and "HF_HUB_CACHE" in message


# ---- processes, with the user's settings in the environment

FETCH = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
from huggingface_hub import constants
from atp_cpp.convert.source import fetch
constants.DOWNLOAD_CHUNK_SIZE = 10_000
print(*fetch(sys.argv[1]))
"""


@pytest.fixture
def start(hub, tmp_path):
    """`start(**variables)`: a process that fetches org/tiny."""
    processes = []

    def run(stderr=subprocess.PIPE, **variables):
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")} | variables
        path = {"PYTHONPATH": str(Path(atp_cpp.__file__).parents[1])}
        command = [sys.executable, "-W", "error", "-c", FETCH, "org/tiny"]
        process = subprocess.Popen(
            command, env={**os.environ, **path, **settings}, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=stderr,
        )  # fmt: skip
        processes.append(process)
        return process

    yield run
    hub.go_on.set()
    for process in processes:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def finished(process):
    """The folder that it printed."""
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    folder, name = out.split()
    assert name == "tiny"
    return Path(folder)


def test_the_users_settings(hub, tmp_path, start):
    """Endpoint, cache, token and offline mode, each by its own variable."""
    hub.private = True
    folder = finished(start(HF_TOKEN=TOKEN, HF_HUB_CACHE=str(tmp_path / "elsewhere")))
    assert folder.is_relative_to(tmp_path / "elsewhere")
    hub.asked.clear()
    again = finished(start(HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path / "elsewhere")))
    assert again == folder and hub.asked == []
    process = start(HF_HUB_OFFLINE="1")
    assert "is not in the cache" in process.communicate(timeout=60)[1]
    assert process.returncode == 1 and hub.asked == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_download_resumes(hub, tmp_path, start, how):
    hub.pauses[PARTS[1]] = 100_000
    process = start()
    assert hub.paused.wait(60)
    blobs = tmp_path / "home" / "hub" / "models--org--tiny" / "blobs"
    for _ in range(600):
        if any(path.stat().st_size >= 90_000 for path in blobs.glob("*.incomplete")):
            break
        process.poll()
        hub.go_on.wait(0.05)
    process.send_signal(how)
    process.communicate(timeout=60)
    (partial,) = blobs.glob("*.incomplete")
    n_here = partial.stat().st_size
    assert 90_000 <= n_here <= 100_000
    hub.pauses.clear()
    hub.go_on.set()
    hub.asked.clear()
    folder = finished(start())
    assert contents(folder) == {name: hub.files[name] for name in NEEDED}
    assert [asked.range for asked in hub.gets(PARTS[1])] == [f"bytes={n_here}-"]
    assert hub.gets(PARTS[0]) == []


def test_two_runs_download_once(hub, start):
    """The second waits for the first, then finds the file there."""
    hub.pauses[PARTS[1]] = 100_000
    first = start()
    assert hub.paused.wait(60)
    second = start()
    for _ in range(600):
        if sum(asked.path == "/api/models/org/tiny" for asked in hub.asked) == 2:
            break
        hub.go_on.wait(0.05)
    hub.go_on.wait(0.3)
    hub.go_on.set()
    assert finished(first) == finished(second)
    assert [len(hub.gets(part)) for part in PARTS] == [1, 1]


@pytest.mark.skipif(os.name != "posix", reason="no pseudo-terminals here")
def test_a_bar_on_a_terminal(start):
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    process = start(stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
        shown += block
    os.close(ours)
    assert process.wait(60) == 0
    text = shown.decode()
    assert PARTS[1] in text and "100%" in text and "Fetching" not in text
