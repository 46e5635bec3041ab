"""The program as a process on a small random model: pipes, disks, terminals and signals."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import atp_cpp


def default_interrupt():
    """Ctrl-C reaches the program also where the tests run in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(Path(atp_cpp.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-m", "atp_cpp", *map(str, arguments)],
        env=environment, text=True, stdout=options.pop("stdout", subprocess.PIPE),
        stderr=options.pop("stderr", subprocess.PIPE),
        preexec_fn=default_interrupt if os.name == "posix" else None, **options,
    )  # fmt: skip


@pytest.fixture
def real_files(tiny_files):
    return ["-m", *tiny_files[:1], "--mmproj", *tiny_files[1:], "-c", "512", "-t", "1"]


def test_real_run_is_silent_but_for_the_result(scene, real_files):
    process = start("caption", scene, scene, *real_files, "--json", "-n", 4)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["n_image_tokens"] for row in rows] == [64, 64]
    assert rows[0]["caption"] == rows[1]["caption"]


def test_real_verbose_shows_llama_cpps_log(scene, real_files):
    process = start("caption", scene, *real_files, "-n", 1, "--verbose")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "llama" in err
    assert len(err.splitlines()) > 10


def test_real_closed_pipe(scene, real_files):
    process = start("caption", *[scene] * 40, *real_files, "-n", 2)
    assert process.stdout.readline().startswith(str(scene))
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_real_full_disk(scene, real_files):
    with open("/dev/full", "w", encoding="ascii") as full:
        process = start("caption", scene, *real_files, "-n", 2, stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == "atp-cpp: error: standard output: No space left on device\n"


def test_real_interrupt(scene, real_files):
    process = start("caption", *[scene] * 400, *real_files, "-n", 100)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(out.splitlines()) < 399  # it stopped, rather than finishing first
    assert "interrupted;" in err
    assert "Traceback" not in err
    assert len(out.splitlines()) < 399


@pytest.mark.skipif(os.name != "posix", reason="no pseudo-terminals here")
def test_real_terminal_gets_a_bar_and_a_stream(scene, real_files):
    import fcntl
    import pty
    import struct
    import termios

    def on_terminal(*arguments):
        ours, theirs = pty.openpty()
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        process = start("caption", *arguments, *real_files, "-n", 4, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b""
        while True:
            try:
                block = os.read(ours, 4096)
            except OSError:  # the other side is closed
                break
            if not block:
                break
            shown += block
        os.close(ours)
        assert process.wait(60) == 0
        return shown.decode(errors="replace")

    assert "2/2" in on_terminal(scene, scene)
    assert "1/1" not in on_terminal(scene)


def test_help_on_an_ascii_terminal(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    process = start("caption", "--help")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "--policy" in out


def test_real_json_of_one_image_has_its_hash(scene, real_files):
    process = start("caption", scene, *real_files, "--json", "-n", 4, "--presence-penalty", "0.5")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    row = json.loads(out)
    assert row["sha256"] == hashlib.sha256(scene.read_bytes()).hexdigest()
    assert len(row["config_hash"]) == 16
