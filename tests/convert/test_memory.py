"""Converting holds a tensor or two in memory, however many there are; so does quantising."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from atp_cpp import _core as core
from atp_cpp.convert.run import convert_hf
from support.resident import children, needs_proc
from support.sharded_llava import Shape, write_sharded_llava

pytestmark = [pytest.mark.torch, needs_proc]

MANY = Shape(n_layer=24, n_embd=512, n_ff=1536, n_vocab=480)  # 165 MB in BF16
ROOM = 30e6  # bytes; measured: up to 5.5e6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint of 24 layers in three shards, and one of a single layer."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "many": write_sharded_llava(root / "many", MANY),
        "one": write_sharded_llava(root / "one", replace(MANY, n_layer=1)),
    }


def anonymous(status):
    """Bytes that no file backs, out of /proc/PID/status; 0 when the process is gone."""
    try:
        lines = Path(status).read_text().splitlines()
    except OSError:
        return 0
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("RssAnon:")), 0)


class Watch:
    """Samples anonymous memory a hundred times a second while it is entered."""

    def __init__(self, statuses):
        self._statuses, self._done = statuses, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.samples = []

    def _look(self):
        while not self._done.wait(0.01):
            self.samples += [size for s in self._statuses() if (size := anonymous(s)) > 0]

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()


def peak_of(folder, out, outtype):
    """Converts; the most that the child process had at a time, in bytes, and the text model."""
    with Watch(children) as watch:
        text, _ = convert_hf(folder, out, outtype=outtype)
    assert len(watch.samples) > 50
    return max(watch.samples), text.path


@pytest.mark.parametrize("outtype", ["bf16", "q8_0"])
def test_layers_cost_nothing(folders, tmp_path, outtype):
    """24 layers against one, each tensor as large as before."""
    peaks, sizes = [], []
    for name in ("one", "many"):
        peak, path = peak_of(folders[name], tmp_path, outtype)
        peaks.append(peak)
        sizes.append(path.stat().st_size)
    assert sizes[1] - sizes[0] > 2 * ROOM
    assert peaks[0] > 100e6, "torch is in there"
    assert peaks[1] - peaks[0] < ROOM


def test_quantising(folders, tmp_path):
    source = str(peak_of(folders["many"], tmp_path, "bf16")[1])
    core.quantised_size(source, "q8_0")
    before = anonymous("/proc/self/status")
    with Watch(lambda: ["/proc/self/status"]) as watch:
        core.quantise(source, str(tmp_path / "out.gguf"), "q8_0")
    assert len(watch.samples) > 5
    assert max(watch.samples) - before < ROOM
