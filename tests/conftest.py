"""Fixtures of all tests: tiny random models, made once per session and shared."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import make_tiny_model

pytest_plugins = [
    "support.fixtures_engine",
    "support.fixtures_hub",
    "support.fixtures_loading",
    "support.fixtures_pipeline",
    "support.fixtures_python",
    "support.fixtures_train",
]


def _cached(folder: Path, write: Callable[..., None], prefix: str) -> Callable[..., Path]:
    """A function (kind, **options) -> Path that writes each model once into `folder`."""

    def make(kind: str, **options: Any) -> Path:
        name = "-".join([prefix + kind, *(f"{key}={options[key]}" for key in sorted(options))])
        path = folder / f"{name}.gguf"
        if not path.exists():
            write(path, kind, **options)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_model(arch, *, seed=1, weight_type="f32", **sizes) -> Path` of a text decoder.

    Architectures: llama, qwen2, qwen2vl, qwen3vl, gemma3, phi3, qwen2moe; granitehybrid, gemma4,
    cogvlm, chameleon. Sizes are the fields of `DecoderShape`: n_layer, n_embd, head_dim, n_head_kv,
    n_ff, n_vocab, window, n_deepstack, n_kv_shared.
    """
    return _cached(tmp_path_factory.mktemp("models"), make_tiny_model.write_decoder, "")


@pytest.fixture(scope="session")
def tiny_mmproj(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_mmproj(layout, *, seed=1, weight_type="f32", **sizes) -> Path` of a vision tower.

    Layouts: mlp (for llama, qwen2, phi3 and qwen2moe), mlp-cls (LLaVA-1.5), qwen2vl, qwen3vl,
    gemma3. Sizes are the fields of `VisionShape`: n_embd_text, image_size, patch_size, n_layer,
    n_embd, n_head, n_ff, n_deepstack.
    """
    return _cached(tmp_path_factory.mktemp("mmproj"), make_tiny_model.write_mmproj, "mmproj-")


def pytest_report_header(config: pytest.Config) -> str:
    """Say which groups of tests this run leaves out."""
    return f"markers: {config.getoption('markexpr') or 'all'} (CONTRIBUTING.md, Tests and checks)"
