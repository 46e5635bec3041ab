"""The parent's side of the talk with the worker, which is a few lines of Python here."""

import logging

import pytest

from atp_cpp import ConvertError
from atp_cpp.convert import child
from atp_cpp.convert.worker import Job

JOB = Job("in", "tiny", "a.gguf", "f16", "f16", "b.gguf", "f16")


@pytest.fixture
def worker(monkeypatch):
    """Takes the worker's program."""
    monkeypatch.setattr(child, "check_packages", lambda: None)
    return lambda program: monkeypatch.setattr(child, "_START", program)


def test_it_ends_between_plan_and_answer(worker):
    """Its pipe is broken then; what counts is how it ended."""
    worker("""
import os, signal
input()
print('{"event": "plan", "files": {}}', flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""")

    def talk():
        with child.Child(JOB) as process:
            for event in process.events():
                if event is not None and event["event"] == "plan":
                    process._process.wait()
                    process.go_on()

    with pytest.raises(ConvertError, match=r"was killed \(signal 9\)"):
        talk()


def test_notes_are_logged(worker, caplog):
    worker("""
print('{"event": "note", "message": "100 % unchecked"}')
print('{"event": "done"}')
""")
    with caplog.at_level(logging.WARNING, "atp_cpp"), child.Child(JOB) as process:
        events = [event for event in process.events() if event is not None]
    assert events == [{"event": "done"}]
    assert "100 % unchecked" in caplog.text
