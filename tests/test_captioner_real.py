"""Captioner on the real engine with a small random model: counts, memory, errors, interrupts."""

import json
import struct
import threading

import numpy as np
import pytest

from atp_cpp import Captioner, CutSpec, SamplingConfig
from atp_cpp.errors import AtpError, ModelError
from atp_cpp.options.plan import plan_text
from support.resident import growth, needs_proc


def test_real_caption(tiny_captioner, scene):
    seen = []
    caption = tiny_captioner.caption(
        scene, sampling=SamplingConfig(n_predict=12), on_token=lambda p: not seen.append(p)
    )
    report = caption.report
    assert report.grids == [(8, 8)]
    assert report.n_image_tokens == 64
    assert report.n_kept == []
    assert report.tokens_mean == 64
    assert 0 < report.n_decoded <= 12
    assert "".join(seen).strip() == caption.text
    assert min(report.t_encode, report.t_prefill, report.t_decode) > 0


def test_real_pruning_counts_and_cache(tiny_captioner, scene):
    draw = SamplingConfig(n_predict=4)
    whole = tiny_captioner.caption(scene, sampling=draw)
    cut = tiny_captioner.caption(
        scene, policy=["fastv:keep=0.5,after=0.25", "fastv:keep=0.25,after=4"], sampling=draw
    )
    assert [c.after for c in cut.plan] == [2, 4]
    assert cut.report.n_kept == [32, 16]
    assert cut.report.tokens_mean == (2 * 64 + 2 * 32 + 4 * 16) / 8
    assert set(cut.report.kept[1]) < set(cut.report.kept[0]) < set(range(64))
    assert cut.report.kv_bytes < whole.report.kv_bytes
    again = tiny_captioner.caption(scene, sampling=draw)
    assert again.text == whole.text
    assert again.report.kv_bytes == whole.report.kv_bytes


def left_half(tokens):
    return [int(i) for i, x in zip(tokens["index"], tokens["x"], strict=True) if x < 4]


def best_quarter(tokens):
    """fastv with keep=0.25, written by a user."""
    best = np.argsort(-tokens["score"], kind="stable")[:16]
    return sorted(int(tokens["index"][i]) for i in best)


def test_a_function_of_the_user_runs_everywhere(tiny_captioner, scene, pixels):
    draw = SamplingConfig(n_predict=6)
    plan = [CutSpec(2, left_half), CutSpec(4, best_quarter, needs="last_row")]
    alone = [tiny_captioner.caption(image, policy=plan, sampling=draw) for image in (scene, pixels)]
    assert [list(c.report.n_kept) for c in alone] == [[32, 16]] * 2
    assert all(i % 8 < 4 for c in alone for i in c.report.kept[0])
    rows = list(tiny_captioner.caption_many([scene, pixels], policy=plan, sampling=draw))
    assert [row.caption for row in rows] == [c.text for c in alone]
    assert {row.policy for row in rows} == {plan_text(plan)}
    named = ["grid:keep=0.5,after=2", "fastv:keep=0.25,after=4"]
    assert (
        rows[0].config_hash
        != next(iter(tiny_captioner.caption_many([scene], policy=named, sampling=draw))).config_hash
    )


def test_real_unpruned_cut_changes_nothing(tiny_captioner, scene):
    draw = SamplingConfig(n_predict=16)
    whole = tiny_captioner.caption(scene, sampling=draw)
    staged = tiny_captioner.caption(scene, policy=["none:after=3", "none:after=5"], sampling=draw)
    assert staged.text == whole.text
    assert staged.report.n_kept == [64, 64]


def test_real_image_matters_and_does_not_leak(tiny_captioner, scene, pixels):
    draw = SamplingConfig(n_predict=16)
    first = tiny_captioner.caption(scene, sampling=draw).text
    other = tiny_captioner.caption(pixels, sampling=draw).text
    assert other != first
    assert tiny_captioner.caption(scene, sampling=draw).text == first


def test_real_two_images_have_quotas(tiny_captioner, scene, pixels):
    caption = tiny_captioner.caption(
        [scene, pixels],
        policy="grid:keep=0.25,after=1",
        sampling=SamplingConfig(n_predict=2),
    )
    assert caption.report.grids == [(8, 8), (8, 8)]
    kept = np.array(caption.report.kept[0])
    assert ((kept < 64).sum(), (kept >= 64).sum()) == (16, 16)


def test_real_stop_text_and_seed(tiny_captioner, scene):
    text = tiny_captioner.caption(scene, sampling=SamplingConfig(n_predict=16)).text
    stop = text[len(text) // 2 :][:3]
    short = tiny_captioner.caption(scene, sampling=SamplingConfig(n_predict=16, stop=(stop,)))
    assert short.finish_reason == "stop"
    assert stop not in short.text
    draws = [
        tiny_captioner.caption(
            scene, sampling=SamplingConfig(n_predict=16, temp=2.0, top_k=0, top_p=1.0, seed=seed)
        ).text
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_real_context_too_small(tiny_captioner, scene):
    with pytest.raises(AtpError) as caught:
        tiny_captioner.caption(scene, "word " * 600)
    assert "\n" not in str(caught.value)
    assert "512" in str(caught.value)  # names the context it has
    assert tiny_captioner.caption(scene, sampling=SamplingConfig(n_predict=2)).report.n_decoded


def caption_for_ever(cap, image):
    while True:
        cap.caption(image, sampling=SamplingConfig(n_predict=300))


def test_real_interrupt_stops_within_a_step(tiny_captioner, scene):
    """A signal that arrives while the engine computes, without a callback to see it."""
    import signal

    timer = threading.Timer(0.15, lambda: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            caption_for_ever(tiny_captioner, scene)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    assert tiny_captioner.caption(scene, sampling=SamplingConfig(n_predict=2)).report.n_decoded


def write_gguf_head(path, pairs):
    """A GGUF of strings only and without tensors."""
    body = struct.pack("<QQ", 0, len(pairs))
    for key, value in pairs.items():
        for text, prefix in ((key, b""), (value, struct.pack("<I", 8))):
            body += prefix + struct.pack("<Q", len(text)) + text.encode()
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + body)


@pytest.mark.parametrize("which", ["missing", "text", "empty", "directory", "cut", "json", "alien"])
@pytest.mark.parametrize("role", ["model", "mmproj"])
def test_real_bad_files(tmp_path, tiny_files, which, role):
    bad = tmp_path / "bad.gguf"
    good = dict(zip(("model", "mmproj"), tiny_files, strict=True))
    if which == "text":
        bad.write_text("these are words\n" * 20)
    elif which == "json":
        bad.write_text(json.dumps({"a": 1}))
    elif which == "empty":
        bad.touch()
    elif which == "directory":
        bad.mkdir()
    elif which == "cut":
        data = good[role].read_bytes()
        bad.write_bytes(data[: len(data) * 2 // 3])
    elif which == "alien":
        write_gguf_head(bad, {"general.architecture": "no-such-thing"})
    files = {**good, role: bad}
    with pytest.raises(ModelError) as caught:
        Captioner(files["model"], mmproj=files["mmproj"])
    assert str(bad) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_real_files_that_do_not_fit(tiny_model, tiny_mmproj, tiny_files):
    model, mmproj = tiny_files
    with pytest.raises(ModelError, match="n_embd") as caught:
        Captioner(model, mmproj=tiny_mmproj("mlp", n_embd_text=64))
    assert "64" in str(caught.value)
    assert "128" in str(caught.value)
    with pytest.raises(ModelError) as caught:
        Captioner(mmproj, mmproj=mmproj)
    assert "projector" in str(caught.value)
    with pytest.raises(ModelError) as caught:
        Captioner(model, mmproj=model)
    assert "projector" in str(caught.value)


@needs_proc
def test_real_open_and_close_leaves_no_memory(tiny_files, pixels):
    model, mmproj = tiny_files

    def once():
        with Captioner(model, mmproj=mmproj, n_ctx=512, n_threads=1) as cap:
            cap.caption(pixels, sampling=SamplingConfig(n_predict=2))

    assert growth(once, n=20) < 150_000, "bytes left behind by each captioner"
