"""The parent's side of a conversion: starts the worker, reads its reports, always ends it."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from types import TracebackType
from typing import IO, Any

from atp_cpp.convert.worker import Job
from atp_cpp.errors import ConvertError

_NEEDED = ("torch", "transformers", "safetensors", "sentencepiece", "yaml")
# the child imports modules from the same places as the parent, and not from the current folder
_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from atp_cpp.convert.worker import main
sys.exit(main())
"""
_log = logging.getLogger(__name__)
_TICK = 0.2  # s between looks at the clock while the worker says nothing


class Child:
    """A worker process; a context manager that leaves no process behind.

    Args:
        job: what to convert.
        verbose: the worker's notes go to this process's stderr; otherwise they are kept for errors.

    Raises:
        ConvertError: packages that conversion needs are missing.
    """

    def __init__(self, job: Job, *, verbose: bool = False) -> None:
        check_packages()
        self._job = job
        # _last_words() reads this file after a failure; __exit__ closes it
        self._notes: IO[bytes] | None = None if verbose else tempfile.TemporaryFile()  # noqa: SIM115
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Child:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps([path for path in sys.path if path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._notes,
            text=True,
            env={**os.environ, "TRANSFORMERS_VERBOSITY": "error"},
            start_new_session=True,  # Ctrl-C reaches us; we end it
        )
        threading.Thread(target=self._read, daemon=True).start()
        self._say(json.dumps(asdict(self._job)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._notes):
            if stream is not None:
                with suppress(BrokenPipeError):  # the worker ended before it read the line
                    stream.close()

    def events(self) -> Iterator[dict[str, Any] | None]:
        """The worker's reports in order; None whenever it said nothing for a moment.

        Its notes are logged instead.

        Raises:
            ConvertError: the worker reported an error, or ended without a report.
        """
        while True:
            try:
                line = self._lines.get(timeout=_TICK)
            except queue.Empty:
                yield None
                continue
            if line is None:
                raise ConvertError(self._last_words())
            event = json.loads(line)
            if event["event"] == "error":
                raise ConvertError(event["message"])
            if event["event"] == "note":
                _log.warning(event["message"])
                continue
            yield event
            if event["event"] == "done":
                return

    def go_on(self) -> None:
        """Answers the worker's plan: the worker shall write."""
        self._say("go on")

    def _say(self, line: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the worker ended; events() raises with the reason

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _last_words(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "the converter was killed (signal 9), perhaps for want of memory; free some"
        words = ""
        if self._notes is not None:
            self._notes.seek(0)
            lines = self._notes.read().decode(errors="replace").split("\n")
            words = next((": " + line.strip() for line in reversed(lines) if line.strip()), "")
        return f"the converter ended with code {code}{words}; --verbose shows more"


def check_packages() -> None:
    """Raises ConvertError when a package that conversion needs is missing."""
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise ConvertError(f"converting needs {', '.join(missing)}: pip install 'atp_cpp[convert]'")
