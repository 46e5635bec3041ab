"""The laws on two backends at once: ggml's RPC device over loopback as the stand-in for a GPU.

Its buffers cannot be read by the host, so any direct read of a tensor fails loudly. Layers go to
it as they would to a GPU: all of them (`n_gpu_layers=-1`) or the upper half. Needs a module built
with GGML_RPC=ON, and ATP_RPC_SERVER: the path of the ggml-rpc-server of the same build.
"""

import os
import socket
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest

from atp_cpp import _core as core
from atp_cpp.sidecar.sidecar import fingerprint_from_gguf
from support.atp_modules import Modules, grids_of
from support.invariants import (
    nothing_leaks,
    pruned_equals_masked,
    scores_equal_numpy,
    staged_equals_whole,
    together_equals_alone,
)
from support.rig import PRECISIONS, Rig, max_abs, prompt
from support.score_twin import atp_plan, atp_scores_equal_numpy
from support.tolerance import check

pytestmark = [
    pytest.mark.rpc,
    pytest.mark.skipif("ATP_RPC_SERVER" not in os.environ, reason="ATP_RPC_SERVER is not set"),
]

OFFLOAD = {"all layers": -1, "half of them": 4, "none": 0}
N_LAYER = 8
RUNNING = []


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port, process, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"ggml-rpc-server ended with {process.returncode}"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    pytest.fail(f"ggml-rpc-server does not listen on port {port}")


@pytest.fixture(scope="module")
def device():
    """Name of the RPC device; its server lives as long as this process."""
    assert hasattr(core, "add_rpc_device"), "this _core was built without GGML_RPC"
    port = free_port()
    # a test that fails keeps its decoders until the process ends, and a decoder whose server is
    # gone aborts: so the server ends after the process, when the pipe to its shell is closed
    until_the_pipe_closes = '"$@" & read -r _; kill $!'
    command = [os.environ["ATP_RPC_SERVER"], "-H", "127.0.0.1", "-p", str(port), "-t", "1"]
    read_end, _ = os.pipe()
    server = subprocess.Popen(
        ["sh", "-c", until_the_pipe_closes, "sh", *command],
        stdin=read_end,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_end)
    RUNNING.append(server)
    wait_for(port, server)
    (name,) = core.add_rpc_device(f"127.0.0.1:{port}")
    return name


@pytest.fixture(params=OFFLOAD)
def n_gpu_layers(request):
    return OFFLOAD[request.param]


@pytest.fixture
def make_rpc_rig(device, tiny_model, n_gpu_layers):
    def make(arch, precision="f16", **options):
        options = PRECISIONS[precision] | {"n_gpu_layers": n_gpu_layers} | options
        return Rig(tiny_model(arch), arch, options, backend="rpc")

    return make


def plan_for(arch):
    second = core.Cut(6, "random" if arch == "gemma3" else "fastv", 0.2)
    return [core.Cut(0, "grid", 0.9), core.Cut(4, "fastv", 0.5), second]


def test_the_device_is_in_use(make_rpc_rig, device):
    devices = make_rpc_rig("llama").staged().devices
    assert len(devices) == 2
    assert devices[0].startswith(device)
    assert devices[1] == "CPU"


@pytest.mark.parametrize("cuts", [[], [4], list(range(1, N_LAYER))], ids=len)
def test_staged_equals_whole(make_rpc_rig, arch, precision, cuts):
    rig = make_rpc_rig(arch, precision)
    staged = rig.staged()
    seq = prompt(rig, staged, 5, (8, 8), 40)
    staged_equals_whole(rig, staged, rig.plain(), seq, cuts)
    staged.remove(0)
    assert staged.self_test(cuts) == 0.0


@pytest.mark.parametrize("n_ubatch", [7, 32])
@pytest.mark.parametrize("arch", ["llama", "qwen2vl", "qwen3vl", "qwen2moe"])
def test_staged_equals_whole_over_many_ubatches(make_rpc_rig, arch, n_ubatch):
    rig = make_rpc_rig(arch, n_ubatch=n_ubatch)
    staged = rig.staged()
    seq = prompt(rig, staged, 5, (8, 8), 40)
    staged_equals_whole(rig, staged, rig.plain(), seq, [2, 4, 6], n_steps=4)


def test_pruned_equals_masked(make_rpc_rig, arch, precision):
    rig = make_rpc_rig(arch, precision)
    staged = rig.staged()
    for parts in ((5, (8, 8), 11), ((4, 6), 3, (5, 5), 9), (3, (6, 6), 150)):
        pruned_equals_masked(rig, staged, prompt(rig, staged, *parts), plan_for(arch))


def test_scores_equal_numpy(make_rpc_rig, arch, precision):
    rig = make_rpc_rig(arch, precision)
    staged = rig.staged()
    plan = [core.Cut(4, "fastv", 0.4)]
    if arch != "gemma3":
        plan = [core.Cut(1, "fastv", 0.8), *plan, core.Cut(7, "fastv", 0.1)]
    for parts in ((5, (8, 8), 11), (3, (4, 6), 4, (5, 5), 90)):
        scores_equal_numpy(rig, staged, prompt(rig, staged, *parts), plan, len(parts))


def test_atp_scores_equal_numpy(make_rpc_rig, arch, precision):
    rig = make_rpc_rig(arch, precision)
    staged = rig.staged()
    for parts in ((5, (8, 8), 11), (3, (4, 6), 4, (5, 5), 90)):
        atp_scores_equal_numpy(rig, staged, parts)


def test_atp_scores_equal_numpy_where_the_map_takes_many_blocks(make_rpc_rig):
    rig = make_rpc_rig("llama", n_ctx=1280, n_ubatch=1024)
    parts = (5, (24, 24), 70, (14, 14), 100, (3, 4), 40)
    atp_scores_equal_numpy(rig, rig.staged(), parts, atp_plan(rig, [(2, 0.9), (5, 0.5)]), 1024)


def test_atp_pruned_equals_masked(make_rpc_rig, arch, precision, tmp_path):
    """And each keep list is what the twin says on the scores that came from the device."""
    rig = make_rpc_rig(arch, precision)
    staged = rig.staged()
    mine = Modules(rig, tmp_path)
    for parts, budget in (((5, (8, 8), 11), None), ((4, (4, 6), 3, (5, 5), 90), 0.75)):
        seq = prompt(rig, staged, *parts)
        kept = pruned_equals_masked(rig, staged, seq, mine.plan(budget))
        assert len(kept[-1]) < seq.n_image_tokens
        staged.remove(0)
        mine.twin(staged.prefill(seq), grids_of(parts), budget)


@pytest.mark.parametrize("n_gpu_layers", [-1, 4])
def test_atp_decides_on_the_device_as_on_the_cpu(make_rpc_rig, arch, precision, tmp_path):
    rig = make_rpc_rig(arch, precision)
    on_cpu = replace(rig, options=rig.options | {"n_gpu_layers": 0})
    plan = Modules(rig, tmp_path).plan()
    for parts in ((5, (8, 8), 11), (3, (6, 6), 2, (3, 9), 80)):
        outs = []
        for decoder in (rig.staged(), on_cpu.staged()):
            decoder.set_plan(plan)
            seq = prompt(rig, decoder, *parts)
            outs.append(decoder.prefill(seq, n_predict=4, all_logits=True))
        ours, theirs = outs
        assert ours["kept"] == theirs["kept"]
        assert ours["thresholds"] == theirs["thresholds"]
        assert len(ours["kept"][-1]) < seq.n_image_tokens
        check(max_abs(theirs["logits"], ours["logits"]), "rpc", "any", "device = CPU")


def test_sequences_together_and_one_after_another(make_rpc_rig, arch):
    rig = make_rpc_rig(arch)
    staged = rig.staged()
    first = prompt(rig, staged, 5, (8, 8), 11, seed=1)
    second = prompt(rig, staged, 7, (5, 5), 3, (2, 3), 4, seed=2)
    nothing_leaks(rig, staged, plan_for(arch), first, second)
    together_equals_alone(rig, plan_for(arch), [first, second])


def test_kv_bytes_on_both_backends_fall_with_what_is_kept(make_rpc_rig):
    rig = make_rpc_rig("llama", n_ctx=1024)
    staged = rig.staged()
    seq = prompt(rig, staged, 5, (24, 24), 11)
    measured = []
    for keep in (1.0, 0.5, 0.1):
        staged.remove(0)
        staged.set_plan([core.Cut(2, "grid", keep)])
        staged.prefill(seq, n_predict=8)
        measured.append(staged.kv_bytes)
    assert measured[2] < measured[1] < measured[0]
    assert staged.n_cells == [768, 256], "in steps of 256 where a device may want them"


def test_a_model_keeps_its_fingerprint(device, tiny_model, n_gpu_layers):
    """The norms are read from where they are."""
    params = core.ModelParams(
        str(tiny_model("llama")), n_ctx=64, n_threads=1, n_gpu_layers=n_gpu_layers
    )
    assert core.model_fingerprint(params) == fingerprint_from_gguf(tiny_model("llama"))


def test_captions_with_the_tower_on_the_device(
    device, tiny_model, tiny_mmproj, pictures, n_gpu_layers
):
    engine = core.Engine(
        str(tiny_model("llama")),
        str(tiny_mmproj("mlp")),
        n_ctx=512,
        n_threads=1,
        n_gpu_layers=n_gpu_layers,
    )
    assert engine.info.can_prune, engine.info.why_not
    marker = engine.info.media_marker
    results = [
        engine.generate(marker + " a question", pictures[:1], plan=plan, n_predict=16)
        for plan in ([], [core.Cut(3, "none")], plan_for("llama"), plan_for("llama"))
    ]
    assert results[0].tokens == results[1].tokens
    assert results[2].tokens == results[3].tokens != results[0].tokens
    assert np.all(np.diff([64, *results[2].report.n_kept]) < 0)
    engine.close()
