"""Ways to caption a list of images that bench_batch.py compares, behind one face.

``run(paths)`` captions them all and tells how long it took; models are loaded before, and every
program stays alive between rounds, so no round pays for loading.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from atp_cpp import Captioner
from atp_cpp.options.plan import SamplingConfig

START_S = 300  # a model of several GB from a slow disk
# lines of llama-server at -lv 4: minutes.seconds.ms.us level text
_STAMP = re.compile(r"^(\d+)\.(\d+)\.(\d+)\.(\d+) \S+ (.*)$")
_DECODED = re.compile(r"image decoded \(batch .* in (\d+) ms")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all contestants do.

    Attributes:
        model: the text model.
        mmproj: its projector.
        question: what is asked of every image.
        n_predict: new tokens a caption.
        natural: captions end where the model ends them; else each has n_predict tokens.
        n_threads: of every program.
    """

    model: str
    mmproj: str
    question: str
    n_predict: int
    natural: bool
    n_threads: int


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One run over a list of images: seconds in all, of its parts, and of all cores' work."""

    n_images: int
    n_tokens: int
    wall: float
    encode: float
    prefill: float
    decode: float
    cpu: float
    captions: tuple[str, ...]

    @property
    def rest(self) -> float:
        """Opening images, waiting, and what no clock saw."""
        return self.wall - self.encode - self.prefill - self.decode


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


class Ours:
    """Captioner.caption_many in this process; several plans may share a captioner.

    `how` tells two captioners apart by name.
    """

    def __init__(
        self, job: Job, plan: str, batch_size: int, captioner: Captioner, how: str, **options: Any
    ) -> None:
        self.job, self.plan, self.batch_size = job, plan, batch_size
        self.captioner, self.options = captioner, options
        self.name = ", ".join(filter(None, (f"atp-cpp {plan}", f"{batch_size} at once", how)))

    def run(self, paths: Sequence[Path]) -> Ran:
        draw = SamplingConfig(n_predict=self.job.n_predict)
        cpu, start = time.process_time(), time.perf_counter()
        rows = list(
            self.captioner.caption_many(
                paths, self.job.question, policy=self.plan, batch_size=self.batch_size,
                sampling=draw, **self.options,
            )
        )  # fmt: skip
        wall = time.perf_counter() - start
        wrong = [row for row in rows if row.status != "ok"]
        if not self.job.natural:
            wrong += [row for row in rows if row.finish_reason != "length"]
        if wrong:
            raise RuntimeError(f"{self.name}: {wrong[0]}")
        return Ran(
            n_images=len(rows),
            n_tokens=0 if self.job.natural else len(rows) * self.job.n_predict,
            wall=wall,
            encode=sum(row.t_encode for row in rows) / 1e3,
            prefill=sum(row.t_prefill for row in rows) / 1e3,
            decode=sum(row.t_decode for row in rows) / 1e3,
            cpu=time.process_time() - cpu,
            captions=tuple(row.caption for row in rows),
        )

    def close(self) -> None:
        """The captioner's; of a shared one the first call counts."""
        self.captioner.close()


class Loop:
    """mtmd-loop: llama.cpp's libraries, one image after the other."""

    def __init__(self, program: Path, job: Job, prompt: str, n_ctx: int, n_ubatch: int) -> None:
        self.name = "llama.cpp, a loop over the mtmd API"
        self.n_prompt = 0  # known after the first run
        n_predict = -job.n_predict if job.natural else job.n_predict
        numbers = [n_ctx, n_predict, 2048, n_ubatch, job.n_threads]
        self.process = subprocess.Popen(
            [program, job.model, job.mmproj, *map(str, numbers), prompt],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._line() != "ready":
            raise RuntimeError("mtmd-loop did not start")

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def run(self, paths: Sequence[Path]) -> Ran:
        assert self.process.stdin is not None
        answers = []
        cpu, start = _cpu_seconds(self.process.pid), time.perf_counter()
        for path in paths:
            self.process.stdin.write(f"{path}\n")
            self.process.stdin.flush()
            answers.append(self._line().split(" ", 6))
        wall = time.perf_counter() - start
        self.n_prompt = int(answers[0][0])
        encode, prefill, decode = (sum(float(a[k]) for a in answers) / 1e3 for k in (3, 4, 5))
        return Ran(
            n_images=len(answers),
            n_tokens=sum(int(a[1]) for a in answers),
            wall=wall,
            encode=encode,
            prefill=prefill,
            decode=decode,
            cpu=_cpu_seconds(self.process.pid) - cpu,
            captions=tuple(_plain(a[6]) for a in answers),
        )

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _plain(text: str) -> str:
    """A line of mtmd-loop's as the caption it stands for."""
    return text.replace("\\\\", "\0").replace("\\n", "\n").replace("\0", "\\").strip()


class Server:
    """llama-server with as many clients as it has slots; nothing of one request serves another."""

    def __init__(
        self, program: Path, job: Job, n_slots: int, ctx: int, options: str, port: int
    ) -> None:
        self.name = f"llama-server -np {n_slots} {options}".rstrip()
        self.job, self.n_slots, self.port = job, n_slots, port
        self.n_prompt = 0  # known after the first run
        with socket.socket() as taken:  # else another server would answer in its place
            if taken.connect_ex(("127.0.0.1", port)) == 0:
                raise RuntimeError(f"port {port} is in use; end what listens there")
        self.folder = tempfile.TemporaryDirectory()
        self.log = Path(self.folder.name) / "log"
        self.process = subprocess.Popen(
            [
                program, "-m", job.model, "--mmproj", job.mmproj, "--port", str(port),
                "-np", str(n_slots), "-c", str(ctx * n_slots), "-t", str(job.n_threads),
                "--cache-ram", "0", "--no-cache-prompt", "-lv", "4", *shlex.split(options),
            ],
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        """Until it answers that it is ready."""
        for _ in range(5 * START_S):
            if self.process.poll() is not None:
                raise RuntimeError(f"llama-server ended:\n{self.log.read_text()[-2000:]}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise RuntimeError("llama-server was not ready in time")

    def _ask(self, body: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3600)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"{self.name}: {answer}")
        return dict(answer)

    def _body(self, path: Path) -> str:
        url = "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": self.job.question},
        ]
        return json.dumps(
            {
                "messages": [{"role": "user", "content": content}],
                "max_tokens": self.job.n_predict,
                "temperature": 0,
                "ignore_eos": not self.job.natural,
                "cache_prompt": False,
            }
        )

    def run(self, paths: Sequence[Path]) -> Ran:
        bodies = [self._body(path) for path in paths]  # before the clock starts
        log_start = self.log.stat().st_size
        cpu, start = _cpu_seconds(self.process.pid), time.perf_counter()
        with ThreadPoolExecutor(self.n_slots) as clients:
            answers = list(clients.map(self._ask, bodies))
        wall = time.perf_counter() - start
        if any(a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in answers):
            raise RuntimeError(f"{self.name}: a prompt was not computed anew")
        self.n_prompt = int(answers[0]["usage"]["prompt_tokens"])
        encode, prefill = self._split(log_start)
        return Ran(
            n_images=len(answers),
            n_tokens=sum(a["usage"]["completion_tokens"] for a in answers),
            wall=wall,
            encode=encode,
            prefill=prefill,
            decode=wall - encode - prefill,
            cpu=_cpu_seconds(self.process.pid) - cpu,
            captions=tuple(a["choices"][0]["message"]["content"].strip() for a in answers),
        )

    def _split(self, start: int) -> tuple[float, float]:
        """Seconds of the encoder and of the image rows' prefill, from the log's time stamps.

        Both keep all slots waiting, so they do not overlap. The text rows of the prompts are
        decoded together with other captions' tokens and count as decode.
        """
        encode = prefill = 0.0
        began: float | None = None
        for line in self.log.read_bytes()[start:].decode(errors="replace").splitlines():
            match = _STAMP.match(line)
            if not match:
                continue
            minutes, seconds, ms, us = (int(match[k]) for k in range(1, 5))
            now, text = 60 * minutes + seconds + ms / 1e3 + us / 1e6, match[5]
            if "encoding mtmd batch" in text:
                began = now
            elif "decoding image batch 1/" in text and began is not None:
                encode, began = encode + now - began, None
            elif decoded := _DECODED.search(text):
                prefill += int(decoded[1]) / 1e3
        return encode, prefill

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()
