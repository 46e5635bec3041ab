#!/usr/bin/env python3
"""Write tiny random models of llama.cpp's architectures, each as one GGUF file.

    cmake --build --preset release --target atp_arch_models
    python tools/make_arch_models.py --out DIR              all of them, about 3 GB
    python tools/make_arch_models.py --out DIR jamba gemma3n

The hyperparameters are those of llama.cpp's own test of its architectures; see
arch_models/writer.cpp. Models are deeper here, so that they can be cut at several places. The
weights are random, of a size at which neither the hidden state nor the softmax runs away.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
N_LAYER = 6
SECONDS = 300  # for one model, on a busy machine


class WriterError(Exception):
    """A model could not be written; the message says why."""


@dataclass(frozen=True)
class Model:
    """One configuration: an architecture with its hyperparameters.

    Attributes:
        name: of the file, without its suffix.
        arch: llama.cpp's name of the architecture.
        kind: dense or moe.
        options: of the writer.
    """

    name: str
    arch: str
    kind: str
    options: tuple[str, ...] = ()


def setting(**keys: int | str) -> tuple[str, ...]:
    """Options that set GGUF keys; a double underscore stands for a dot."""
    options: list[str] = []
    for key, value in keys.items():
        options += ["--set", f"{key.replace('__', '.')}={value}"]
    return tuple(options)


# upstream's test gives some architectures fewer keys than they ask for, or another depth
_GEMMA4 = (
    *("--layers", "10", "--scale", "attn_q_norm=0.3"),  # it does not divide by sqrt(head_dim)
    *setting(attention__sliding_window_pattern="1,1,1,1,0,1,1,1,1,0"),
)
_RWKV7 = setting(
    attention__decay_lora_rank=32,
    attention__iclr_lora_rank=32,
    attention__value_residual_mix_lora_rank=32,
    attention__gate_lora_rank=32,
)
# every other layer is recurrent: with seven, the last one has attention
_HYBRIDS = "bailingmoe3 glm5-next granitehybrid jamba kimi-k3 kimi-linear lfm2 lfm2moe plamo2"
OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_HYBRIDS.split(), ("--layers", "7")),
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe"), ("--layers", "7")),
    "llama4": ("--layers", "8"),  # every fourth layer has no RoPE
    "deepseek4": ("--layers", "8"),  # four ratios of compression
    "gemma3n": ("--layers", "24"),  # those from 20 on have no KV of their own
    "gemma4": _GEMMA4,
    "rwkv7": _RWKV7,
    "arwkv7": (*_RWKV7, *setting(token_shift_count=1)),
    "plm": setting(rope__dimension_count=64),  # half of a head has no position
    # what it leaves out tells it from rwkv6
    "rwkv6qwen2": (*setting(token_shift_count=1), "--without", "time_mix_first"),
}
# forms of an architecture that upstream's test leaves out
EXTRA = (
    Model("gemma4-e2b", "gemma4", "dense", (*_GEMMA4, *setting(attention__shared_kv_layers=5))),
    Model("gemma4-moe", "gemma4", "moe", _GEMMA4),
    Model("deepseek2-ocr-moe", "deepseek2-ocr", "moe"),
)


def find_writer() -> Path:
    """The program that writes one model: ATP_ARCH_MODELS, or the one built in a folder of build/.

    Raises:
        WriterError: there is none.
    """
    if chosen := os.environ.get("ATP_ARCH_MODELS"):
        return Path(chosen)
    built = [p for p in ROOT.glob("build/*/bin/atp_arch_models*") if p.suffix in ("", ".exe")]
    if not built:
        raise WriterError(
            "atp_arch_models is not built: cmake --preset release && "
            "cmake --build --preset release --target atp_arch_models"
        )
    return max(built, key=lambda path: path.stat().st_mtime)


def all_models(writer: Path) -> list[Model]:
    """Every configuration that upstream's test has, and ours, in the order of their names."""
    lines = subprocess.run([writer, "--list"], check=True, capture_output=True, text=True)
    models = list(EXTRA)
    for line in lines.stdout.splitlines():
        arch, kind = line.split()
        name = arch if kind == "dense" else f"{arch}-moe"
        models.append(Model(name, arch, kind, OPTIONS.get(arch, ())))
    return sorted(models, key=lambda model: model.name)


def write(writer: Path, model: Model, folder: Path) -> Path:
    """Write one model into `folder`.

    Raises:
        WriterError: llama.cpp makes no model of the configuration, or the writer died.
    """
    path = folder / f"{model.name}.gguf"
    part = path.with_suffix(".part")
    command = [str(writer), model.arch, model.kind, str(part), "--layers", str(N_LAYER)]
    done = subprocess.run(
        [*command, *model.options], capture_output=True, text=True, timeout=SECONDS
    )
    if done.returncode != 0:
        part.unlink(missing_ok=True)
        raise WriterError(why(done.returncode, done.stderr))
    part.replace(path)
    return path


def why(code: int, stderr: str) -> str:
    """The line of the writer's stderr that says what was wrong."""
    lines = [line.strip() for line in stderr.splitlines()]
    if code < 0:
        asserts = [line for line in lines if "GGML_ASSERT" in line or "GGML_ABORT" in line]
        return f"signal {-code}: {(asserts or ['no word'])[0]}"
    loading = [line for line in lines if "error loading model" in line]
    return (loading or lines or ["no word"])[-1].rpartition("error loading model: ")[2]


def main(argv: list[str] | None = None) -> int:
    """Write the models; one line for each, and what could not be written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("names", nargs="*", help="names of models (default: all)")
    args = parser.parse_args(argv)
    try:
        writer = find_writer()
    except WriterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    models = all_models(writer)
    if unknown := set(args.names) - {model.name for model in models}:
        parser.error(f"no model is named {', '.join(sorted(unknown))}")
    args.out.mkdir(parents=True, exist_ok=True)
    for model in models:
        if args.names and model.name not in args.names:
            continue
        try:
            path = write(writer, model, args.out)
            print(f"{model.name}: {path.stat().st_size / 1e6:.0f} MB", flush=True)
        except (WriterError, subprocess.TimeoutExpired) as error:
            print(f"{model.name}: not written: {error}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
