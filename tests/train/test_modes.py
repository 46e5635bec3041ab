"""What each mode of training changes, and that it is written as it was."""

import logging
import sys

import numpy as np
import pytest

from atp_cpp.errors import AtpError
from support.tiny_llava_hf import N_LAYER, SIDE, write_tiny_llava
from support.train_modules import load_heads

pytestmark = pytest.mark.torch


def weights(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def norms(stored):
    prefix = next(n for n in stored if n.endswith("layers.0.input_layernorm.weight")).split(
        "layers."
    )[0]
    yield stored[prefix + "norm.weight"].astype(np.float32)
    for il in range(N_LAYER):
        for part in ("input_layernorm", "post_attention_layernorm"):
            yield stored[f"{prefix}layers.{il}.{part}.weight"].astype(np.float32)


def test_thresholds_leave_the_language_model_alone(trainer, tiny_llava):
    run = trainer(mode="thresholds")
    before = {name: p.clone() for name, p in run.llava.named_parameters()}
    assert len(list(run.steps())) == 3
    run.finish()
    for name, parameter in run.llava.named_parameters():
        same = bool((parameter == before[name]).all())
        assert same != name.startswith("heads."), name
    assert not (run.options.out / "model").exists()
    from atp_cpp.sidecar.sidecar import AtpSidecar, fingerprint_from_arrays

    sidecar = AtpSidecar.load_dir(run.options.out)
    stored = weights(tiny_llava)
    assert sidecar.fingerprint == fingerprint_from_arrays(norms(stored))


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_tuned_model_is_saved_as_it_was_watched(trainer, tmp_path, mode):
    from atp_cpp.sidecar.sidecar import AtpSidecar, fingerprint_from_arrays

    half = write_tiny_llava(tmp_path / "half", dtype="float16")
    run = trainer(model=half, mode=mode, name="small")
    assert len(list(run.steps())) == 3
    watched = run.finish()
    folder = run.options.out / "model"
    old, new = weights(half), weights(folder)
    assert {n: (v.shape, v.dtype) for n, v in old.items()} == {
        n: (v.shape, v.dtype) for n, v in new.items()
    }
    for name in old:
        changed = (old[name] != new[name]).any()
        tuned = "language_model" in name and "embed" not in name
        assert changed or not tuned or "lm_head" in name, name
        if "vision" in name or "projector" in name or (mode == "lora" and "embed" in name):
            assert not changed, name
    assert (
        old[next(n for n in old if "lm_head" in n)] != new[next(n for n in new if "lm_head" in n)]
    ).any() == (mode == "full")
    sidecar = AtpSidecar.load_dir(run.options.out)
    assert sidecar.fingerprint == fingerprint_from_arrays(norms(new))
    assert sidecar.fingerprint != fingerprint_from_arrays(norms(old))
    assert (sidecar.name, sidecar.base_name, sidecar.mode) == ("atp-small", "small", mode)
    assert sidecar.kept == pytest.approx(watched.kept)
    assert sidecar.grid == (SIDE, SIDE) and sidecar.cuts == (1, 3)
    # what was written, read again with the sidecar's heads, gives the same figures
    again = trainer(model=folder, mode="thresholds", out=tmp_path / "again")
    load_heads(sidecar, again.llava.heads)
    assert again.watch().loss == pytest.approx(watched.loss, rel=1e-4)
    assert again.watch().kept == pytest.approx(watched.kept)


def test_adapters_start_at_nothing_and_merge_exactly(trainer, tmp_path):
    plain = trainer(mode="thresholds", out=tmp_path / "p")
    run = trainer(mode="lora", out=tmp_path / "l")
    assert run.watch().loss == pytest.approx(plain.watch().loss, rel=1e-6)
    for _ in run.steps():
        pass
    from atp_cpp.train.modes import merge_adapters

    before = run.watch()
    assert before.loss != pytest.approx(plain.watch().loss, rel=1e-6)
    merge_adapters(run.llava)
    assert run.watch().loss == pytest.approx(before.loss, rel=1e-4)
    assert not [name for name, _ in run.llava.named_modules() if "lora" in name]


def test_lora_without_peft_says_what_to_install(trainer, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(AtpError, match=r"--mode lora needs peft; pip install 'atp_cpp\[train\]'"):
        trainer(mode="lora")


def test_bf16_keeps_what_is_trained_in_float32(trainer, tiny_llava):
    import torch

    run = trainer(mode="lora", dtype="bf16")
    for name, parameter in run.llava.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), (
            name
        )
    rows = list(run.steps())
    assert len(rows) == 3 and all(np.isfinite(row.values["loss"]) for row in rows)
    run.finish()
    # what was frozen is written as it was, not as bfloat16 had it
    old, new = weights(tiny_llava), weights(run.options.out / "model")
    for name in old:
        if "vision" in name or "projector" in name or "embed" in name or "lm_head" in name:
            assert (old[name] == new[name]).all(), name
        elif "self_attn" in name:
            assert 0 < np.abs(new[name] - old[name]).max() < 0.05, name


def test_bf16_thresholds_belong_to_the_checkpoint_as_it_is(trainer, tiny_llava):
    from atp_cpp.sidecar.sidecar import AtpSidecar, fingerprint_from_arrays

    run = trainer(mode="thresholds", dtype="bf16")
    run.finish()
    sidecar = AtpSidecar.load_dir(run.options.out)
    assert sidecar.fingerprint == fingerprint_from_arrays(norms(weights(tiny_llava)))


def test_a_tuned_model_that_looks_like_the_original_is_named(trainer, caplog):
    run = trainer(mode="full", lr_llm=0.0)
    assert len(list(run.steps())) == 3
    with caplog.at_level(logging.WARNING, "atp_cpp"):
        run.finish()
    assert "norms are still those of" in caplog.text


# -- the ablation with fixed shares ---------------------------------------------------------------
