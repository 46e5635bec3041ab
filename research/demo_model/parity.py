"""Does the engine decide what torch decides? Thresholds and keep lists, picture by picture.

    atp-cpp convert tests/data/demo_hf --model-name atp-demo --outfile-dir F32 \
        --outtype f32 --mmproj-outtype f32
    python parity.py --f32 F32 --atp atp.gguf --checkpoint tests/data/demo_hf \
        --questions eval/questions.jsonl --images 260 --out parity.json
One question of each picture, F32 weights and F32 KV cache, flash attention off, against the module
that training uses, in float32. Twice: from the same image features (torch's), so that only the
decoder and the modules are compared; and each side from the picture, with its own encoder.

A token lies at its threshold when what decides about it, max(S_red - theta_r, S_spa - theta_s), is
about 0; there the two sides' roundings may fall apart. So the margin of every token that differs
is reported. After the first module that differs the two go on from different tokens, and nothing
more of that picture is compared.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import LlavaForConditionalGeneration

from atp_cpp import Captioner, SamplingConfig
from atp_cpp import _core as core
from atp_cpp.evaluation.report import provenance
from atp_cpp.sidecar.sidecar import AtpSidecar
from atp_cpp.storage.digest import file_sha256
from atp_cpp.train.insert import AtpLlava
from atp_cpp.train.prompting import Prompting, load_processor
from atp_cpp.train.spec import AtpSpec

EXACT = {"flash_attn": "off", "type_k": "f32", "type_v": "f32", "n_ctx": 1024}
Picture = tuple[Image.Image, str]  # and the question


@dataclass(frozen=True)
class Decided:
    """What one side decided about one picture.

    Attributes:
        kept: image tokens alive after each module.
        thresholds: (theta_r, theta_s) of each.
        margins: torch only: of each module, image token -> by how much it is above its thresholds.
    """

    kept: list[list[int]]
    thresholds: list[tuple[float, float]]
    margins: list[dict[int, float]]


@dataclass(frozen=True)
class Compared:
    """One picture.

    Attributes:
        same: whether every module kept the same.
        threshold_error: the largest difference of a threshold, over the modules compared.
        differing: margins of the tokens that one side alone keeps, at the first module with any.
    """

    same: bool
    threshold_error: float
    differing: list[float]


class TorchSide:
    """The checkpoint in float32 with the sidecar's modules in it."""

    def __init__(self, checkpoint: Path, sidecar: AtpSidecar) -> None:
        names = ("cuts", "score_norm", "divisor", "score", "rule", "strides", "lambda_sample")
        more = ("n_bins", "n_hidden", "activation")
        spec = AtpSpec(**{name: getattr(sidecar, name) for name in (*names, *more)})
        model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
        self.llava = AtpLlava(model.eval(), spec, sidecar.grid)
        self.processor = load_processor(checkpoint)
        self.prompting = Prompting(self.processor)
        with torch.no_grad():
            for cut, head in zip(sidecar.cuts, self.llava.heads, strict=True):
                for name, value in head.named_parameters():
                    value.copy_(torch.from_numpy(sidecar.tensors[f"blk.{cut - 1}.atp_{name}"]))

    def features(self, picture: Image.Image) -> torch.Tensor:
        """(1, n_image_tokens, width), projected."""
        pixels = self.processor.image_processor(picture, return_tensors="pt")["pixel_values"]
        return self.llava.image_features(pixels)

    def head(self, question: str) -> tuple[int, ...]:
        """The prompt's tokens; the image is one of them."""
        return self.prompting.encode(question, "yes")[0]

    def decide(self, features: torch.Tensor, question: str) -> Decided:
        ids = torch.tensor([self.prompting.repeat_image(self.head(question))])
        first = int((ids[0] == self.prompting.image_token_id).int().argmax())
        given = ids, torch.ones_like(ids), torch.tensor([ids.shape[1]])
        with torch.no_grad():
            _, now = self.llava(*given, features, torch.tensor([0]))
        kept, margins, rule = [], [], self.llava.spec.rule
        for decision, (index, live) in zip(now.decisions, now.alive, strict=True):
            token = index[0] - first
            seen = (token >= 0) & (token < features.shape[1])
            token = token[seen]
            red = decision.red[0][seen] - decision.theta_r
            spa = self.llava.spa[token] - decision.theta_s
            sides = [red] * (rule != "spatial") + [spa] * (rule != "redundant")
            margin = torch.stack(sides).amax(0)
            margins.append(dict(zip(token.tolist(), margin.tolist(), strict=True)))
            kept.append(token[live[0][seen] > 0.5].tolist())
        thresholds = [(float(d.theta_r), float(d.theta_s)) for d in now.decisions]
        return Decided(kept, thresholds, margins)


class EngineSide:
    """The staged decoder on the F32 file."""

    def __init__(self, model: Path, sidecar: Path, grid: tuple[int, int], n_threads: int) -> None:
        self.decoder = core.Decoder(core.ModelParams(str(model), n_threads=n_threads, **EXACT))
        cuts = {"n_layer": self.decoder.n_layer, "legal_cuts": self.decoder.legal_cuts}
        self.decoder.set_plan(core.atp_plan(core.load_sidecar(str(sidecar)), **cuts))
        self.grid = grid

    def decide(self, features: NDArray[np.float32], head: tuple[int, ...], image: int) -> Decided:
        """Features [n_image_tokens, width]; `image` is the token of the head that they replace."""
        at = head.index(image)
        seq = core.Sequence(self.decoder.n_embd_inp)
        seq.add_text(list(head[:at]))
        seq.add_image(features, grid=self.grid)
        seq.add_text(list(head[at + 1 :]))
        self.decoder.remove(0)
        out = self.decoder.prefill(seq)
        return Decided(out["kept"], [at[:2] for at in out["thresholds"]], [])


def compare(ours: Decided, theirs: Decided) -> Compared:
    """The engine's decisions against torch's, up to the first module that differs."""
    error = 0.0
    for k, (mine, kept) in enumerate(zip(ours.kept, theirs.kept, strict=True)):
        both = zip(ours.thresholds[k], theirs.thresholds[k], strict=True)
        error = max(error, *(abs(a - b) for a, b in both))
        if mine != kept:
            differing = set(mine) ^ set(kept)
            return Compared(False, error, [theirs.margins[k][token] for token in sorted(differing)])
    return Compared(True, error, [])


def from_same_features(
    pictures: Iterable[Picture], torch_side: TorchSide, engine: EngineSide
) -> Iterator[tuple[Compared, Decided]]:
    """Each picture from torch's image features on both sides, and what torch decided."""
    for picture, question in pictures:
        features = torch_side.features(picture)
        theirs = torch_side.decide(features, question)
        image = torch_side.prompting.image_token_id
        ours = engine.decide(features[0].numpy(), torch_side.head(question), image)
        yield compare(ours, theirs), theirs


def from_pictures(
    pictures: Iterable[Picture], torch_side: TorchSide, captioner: Captioner
) -> Iterator[tuple[Compared, Decided]]:
    """Each picture with each side's own encoder, and what torch decided."""
    one = SamplingConfig(n_predict=1)
    for picture, question in pictures:
        theirs = torch_side.decide(torch_side.features(picture), question)
        report = captioner.caption(picture, question, sampling=one).report
        ours = Decided(report.kept, [at[:2] for at in report.thresholds], [])
        yield compare(ours, theirs), theirs


def summary(results: list[tuple[Compared, Decided]]) -> dict[str, Any]:
    """What is said about a run."""
    rows = [compared for compared, _ in results]
    counts = np.array([[len(kept) for kept in decided.kept] for _, decided in results])
    every = [np.array(list(m.values())) for _, decided in results for m in decided.margins]
    margins = np.abs(np.concatenate(every))
    return {
        "pictures": len(rows),
        "same_keep_lists": sum(row.same for row in rows),
        "largest_threshold_error": max(row.threshold_error for row in rows),
        "median_threshold_error": float(np.median([row.threshold_error for row in rows])),
        "margins_of_differing_tokens": [row.differing for row in rows if not row.same],
        "decisions": len(margins),
        "decisions_within_1e-5_of_a_threshold": int((margins < 1e-5).sum()),
        "kept_mean": counts.mean(axis=0).tolist(),
        "kept_std": counts.std(axis=0).tolist(),
    }


def read_pictures(questions: Path, n_images: int, seed: int) -> list[Picture]:
    """One question, drawn by the seed, of each of `n_images` pictures, drawn likewise."""
    of_image: dict[str, list[str]] = {}
    for line in questions.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        of_image.setdefault(row["image"], []).append(row["question"])
    rng = random.Random(seed)
    out = []
    for name in sorted(rng.sample(sorted(of_image), n_images)):
        with Image.open(questions.parent / name) as image:
            out.append((image.convert("RGB"), rng.choice(of_image[name])))
    return out


def measure(a: argparse.Namespace) -> dict[str, Any]:
    """Both runs, as JSON holds them."""
    model, mmproj = a.f32 / "atp-demo-f32.gguf", a.f32 / "mmproj-atp-demo-f32.gguf"
    torch.set_num_threads(a.threads)
    torch_side = TorchSide(a.checkpoint, AtpSidecar.read_gguf(a.atp))
    pictures = read_pictures(a.questions, a.images, a.seed)
    start = time.perf_counter()
    engine = EngineSide(model, a.atp, torch_side.llava.grid, a.threads)
    same = list(from_same_features(pictures, torch_side, engine))
    del engine
    files = {"mmproj": mmproj, "atp": a.atp, "n_threads": a.threads}
    with closing(Captioner(model, **files, **EXACT)) as captioner:
        own = list(from_pictures(pictures, torch_side, captioner))
    return {
        "what": "engine against torch, F32 weights and KV cache, flash attention off",
        "provenance": provenance(
            torch=torch.__version__,
            atp=a.atp.name,
            atp_sha256=file_sha256(a.atp),
            checkpoint_sha256=file_sha256(a.checkpoint / "model.safetensors"),
            seed=a.seed,
            seconds=round(time.perf_counter() - start),
        ),
        "same_features": summary(same),
        "own_encoders": summary(own),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--f32", type=Path, required=True, help="folder of the two F32 files")
    parser.add_argument("--atp", type=Path, required=True, help="sidecar of the model")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the same model for torch")
    parser.add_argument("--questions", type=Path, required=True, help="of make_eval_set.py")
    parser.add_argument("--images", type=int, default=260)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    content = measure(a)
    a.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name in ("same_features", "own_encoders"):
        r = content[name]
        print(
            f"{name}: {r['same_keep_lists']} of {r['pictures']} pictures keep the same tokens, "
            f"thresholds within {r['largest_threshold_error']:.1e}; margins of tokens that differ: "
            f"{r['margins_of_differing_tokens']}"
        )


if __name__ == "__main__":
    main()
