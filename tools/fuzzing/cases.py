"""One case: what is damaged, and what is done with it; all from a seed and a number."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import make_tiny_model
from atp_cpp import Captioner, SamplingConfig
from atp_cpp.inspect.file import inspect_file
from atp_cpp.sidecar.fingerprint import fingerprint_from_gguf
from atp_cpp.sidecar.sidecar import AtpSidecar, tensor_shapes

from .damage import damaged_gguf, damaged_image, damaged_request

PAIRS = {"llama": "mlp", "qwen2": "mlp-cls", "qwen2vl": "qwen2vl", "gemma3": "gemma3"}
ARCHS = (*PAIRS, "phi3", "qwen2moe")
LAYOUTS = ("mlp", "mlp-cls", "mlp", "mlp-cls", "qwen2vl", "gemma3", "pixtral")
WIDTH = {"n_layer": 2}
LOAD: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, "self_test": False}
TWO = SamplingConfig(n_predict=2)
FORMATS = {
    "png": {"format": "PNG"},
    "jpeg": {"format": "JPEG"},
    "webp": {"format": "WEBP"},
    "gif": {"format": "GIF"},
    "tiff": {"format": "TIFF"},
}
# one round of kinds; loads are dear, images and messages cheap
ROUND = (
    *("mmproj", "model", "sidecar", "inspect-model", "inspect-mmproj", "inspect-sidecar"),
    *FORMATS,
    *("chat", "chat", "chat"),
)


@dataclass
class Case:
    """A case: its kind and what is done."""

    kind: str
    act: Callable[[], object]


class Cases:
    """Makes cases in a folder of its own.

    Args:
        folder: of the good files, made if they are not there, and of the damaged one.
        seed: of all cases.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        for arch in ARCHS:
            self._made(arch, lambda p, a=arch: make_tiny_model.write_decoder(p, a, **WIDTH))
        for layout in set(LAYOUTS):
            name = f"mmproj-{layout}"
            self._made(name, lambda p, n=layout: make_tiny_model.write_mmproj(p, n, **WIDTH))
        files = self.path("llama"), self.path("mmproj-mlp")
        self.captioner = Captioner(files[0], mmproj=files[1], **LOAD)
        self._made("atp", lambda p: sidecar(fingerprint_from_gguf(files[0])).write_gguf(p))
        self.images = self._images()
        self.damaged = folder / "damaged.gguf"

    def path(self, name: str) -> Path:
        """Of a good file."""
        return self.folder / f"{name}.gguf"

    def _made(self, name: str, write: Callable[[Path], object]) -> None:
        if not self.path(name).exists():
            write(self.path(name))

    def _images(self) -> dict[str, list[bytes]]:
        made: dict[str, list[bytes]] = {}
        rng = np.random.default_rng(3)
        for name, options in FORMATS.items():
            made[name] = []
            for mode in ("RGB", "L", "P", "RGBA", "I;16", "CMYK"):
                image = Image.fromarray(rng.integers(0, 256, (24, 31, 3), dtype=np.uint8))
                exif = Image.Exif()
                exif[0x0112] = 6
                out = io.BytesIO()
                try:
                    image.convert(mode if mode != "I;16" else "I").save(out, exif=exif, **options)
                except (OSError, ValueError):
                    continue  # the format has no such mode
                made[name].append(out.getvalue())
        return made

    def case(self, number: int) -> Case:
        """The case of a number."""
        rng = random.Random(f"{self.seed}:{number}")
        kind = ROUND[number % len(ROUND)]
        if kind in FORMATS:
            content = damaged_image(rng, rng.choice(self.images[kind]))
            return Case(kind, lambda: self.captioner.caption(content, "a", sampling=TWO))
        if kind == "chat":
            body = damaged_request(rng, self._request(rng))
            return Case(kind, lambda: self._chat(body))
        what = kind.rpartition("-")[2]
        if what == "model":
            source, layout = rng.choice(list(PAIRS.items()))
            if kind == "inspect-model":
                source = rng.choice(ARCHS)
        elif what == "mmproj":
            layout = rng.choice(LAYOUTS)
            source = f"mmproj-{layout}"
        else:
            source = "atp"
        self.damaged.unlink(missing_ok=True)
        self.damaged.write_bytes(damaged_gguf(rng, self.path(source).read_bytes()))
        if kind.startswith("inspect"):
            return Case(kind, lambda: inspect_file(self.damaged, n_threads=1))
        paths: dict[str, Any] = {"model": self.path("llama"), "mmproj": self.path("mmproj-mlp")}
        if what == "model":
            paths = {"model": self.damaged, "mmproj": self.path(f"mmproj-{layout}")}
        elif what == "mmproj":
            arch = {"qwen2vl": "qwen2vl", "gemma3": "gemma3"}.get(layout, "llama")
            paths = {"model": self.path(arch), "mmproj": self.damaged}
        else:
            paths["atp"] = self.damaged
        return Case(kind, lambda: self._caption(paths))

    def _caption(self, paths: dict[str, Any]) -> None:
        with Captioner(paths.pop("model"), **paths, **LOAD) as captioner:
            captioner.caption(self.images["png"][0], "a", sampling=TWO)

    def _request(self, rng: random.Random) -> dict[str, Any]:
        kind = rng.choice(list(FORMATS))
        data = base64.b64encode(rng.choice(self.images[kind])).decode()
        if rng.random() < 0.3:
            data = base64.b64encode(damaged_image(rng, base64.b64decode(data))).decode()
        image = {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}
        return {
            "messages": [
                {"role": "system", "content": "a"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, image]},
            ],
            "max_tokens": 2,
            "temperature": rng.choice((0.0, 1.0)),
            "seed": 1,
            "stop": ["x"],
            "response_format": rng.choice(
                (
                    {"type": "text"},
                    {"type": "json_object"},
                    {"type": "json_object", "schema": {"type": "object", "properties": {}}},
                )
            ),
        }

    def _chat(self, body: dict[str, Any]) -> None:
        limit = body.get("max_tokens")
        if type(limit) is not int or limit > 8:  # a case shall not take a minute of decoding
            body["max_tokens"] = 2 if limit is None or type(limit) is int else limit
        self.captioner.create_chat_completion(**body)


def sidecar(fingerprint: str) -> AtpSidecar:
    """Random modules for the tiny llama."""
    rng = np.random.default_rng(7)
    made = AtpSidecar(
        arch="llama", name="random", base_name="tiny", cuts=(1,), n_layer=2, n_embd=128, n_head=4,
        fingerprint=fingerprint, grid=(8, 8), score_norm="relative", divisor="rows_visible",
        score="avg", rule="union", strides=(2, 3, 4), lambda_sample=3.0, n_bins=16, n_hidden=8,
        activation="silu", budget=0.5, mode="thresholds", data="none", kept=(0.5,), tensors={},
    )  # fmt: skip
    for name, shape in tensor_shapes(made.cuts, n_bins=16, n_hidden=8).items():
        made.tensors[name] = rng.normal(0, 0.25, shape).astype(np.float32)
    made.validate()
    return made
