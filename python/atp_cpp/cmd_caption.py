"""``atp-cpp caption IMAGE…``: one caption an image."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field

from atp_cpp.caption import Caption
from atp_cpp.captioner import Captioner
from atp_cpp.cli_args import (
    add_model_arguments,
    add_policy_arguments,
    add_prompt_arguments,
    open_captioner,
    policy_from,
    sampling_from,
)
from atp_cpp.config import SamplingConfig
from atp_cpp.errors import AtpError
from atp_cpp.images import Pixels, load_image
from atp_cpp.rows import failed_row, good_row
from atp_cpp.terminal import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_SOME_FAILED,
    Output,
    is_terminal,
    one_line,
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "caption", help="caption images, or answer a question about each", allow_abbrev=False
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, one caption each")
    add_prompt_arguments(parser)
    add_policy_arguments(parser)
    add_model_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON row per image")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, output: Output) -> int:
    """Captions all images; a bad one among several costs its own row only."""
    plan = policy_from(args)
    sampling = sampling_from(args)
    first = (
        _open(args.images[0]) if len(args.images) == 1 else None
    )  # fails before a model is loaded
    with open_captioner(args, output, plan) as captioner:
        job = _Job(captioner, args.prompt, sampling, output, args.json, len(args.images))
        if first is not None:
            return job.run_single(args.images[0], *first)
        return job.run_all(args.images)


def _open(image: str) -> tuple[Pixels, float]:
    """(pixels, ms)."""
    started = time.perf_counter()
    pixels = load_image(image)
    return pixels, 1000 * (time.perf_counter() - started)


@dataclass
class _Job:
    """The run over the images of one command."""

    captioner: Captioner
    prompt: str
    sampling: SamplingConfig
    output: Output
    json: bool
    n_images: int
    pieces: list[str] = field(default_factory=list)  # of the caption under way

    def run_single(self, image: str, pixels: Pixels, t_load: float) -> int:
        streamed = not self.json and is_terminal(sys.stdout)
        try:
            caption = self._caption(pixels, t_load, streamed)
        except KeyboardInterrupt:
            return self._interrupted(image, n_done=0, streamed=streamed)
        if streamed:
            self.output.piece("\n")
        else:
            self._print(image, caption)
        if not self.json:
            self.output.note(cost_line(caption))
        return EXIT_OK

    def run_all(self, images: list[str]) -> int:
        n_done = n_failed = 0
        with self.output.progress(images, len(images)) as items:
            for image in items:
                self.pieces.clear()
                try:
                    self._print(image, self._caption(*_open(image), streamed=False))
                    n_done += 1
                except AtpError as error:
                    n_failed += 1
                    self._print_failed(image, str(error))
                except KeyboardInterrupt:
                    return self._interrupted(image, n_done=n_done, streamed=False)
        if n_failed:
            self.output.note(f"{n_failed} of {len(images)} images failed")
        return EXIT_SOME_FAILED if n_failed else EXIT_OK

    def _caption(self, pixels: Pixels, t_load: float, streamed: bool) -> Caption:
        def on_token(piece: str) -> bool:
            if streamed:
                self.output.piece(piece if any(self.pieces) else piece.lstrip())
            self.pieces.append(piece)
            return True

        return self.captioner.caption_pixels(
            [pixels],
            self.prompt,
            plan=self.captioner.plan,
            sampling=self.sampling,
            on_token=on_token,
            t_load=t_load,
        )

    def _print(self, image: str, caption: Caption) -> None:
        if self.json:
            row = good_row(image, self.prompt, caption, self.captioner, self.sampling.seed)
            self.output.row(row.as_dict())
        else:
            self._print_text(image, caption.text)

    def _print_text(self, image: str, text: str) -> None:
        if self.n_images == 1:
            self.output.result(text)
        else:
            self.output.result(f"{one_line(image)}: {' '.join(text.split())}")

    def _print_failed(self, image: str, error: str) -> None:
        if self.json:
            self._print_failed_row(image, error)
        self.output.error(error if image in error else f"{image}: {error}")

    def _print_failed_row(self, image: str, error: str, partial: str = "") -> None:
        seed = self.sampling.seed
        row = failed_row(image, self.prompt, error, self.captioner, seed, partial=partial)
        self.output.row(row.as_dict())

    def _interrupted(self, image: str, *, n_done: int, streamed: bool) -> int:
        partial = "".join(self.pieces).strip()
        if streamed:
            self.output.piece("\n")
        elif self.json:
            self._print_failed_row(image, "interrupted", partial)
        elif partial:
            self._print_text(image, partial)
        self.output.note(f"interrupted; {n_done} of {self.n_images} captions are complete")
        return EXIT_INTERRUPTED


def cost_line(caption: Caption) -> str:
    """What a caption cost, for a reader."""
    report = caption.report
    tokens = f"{report.n_image_tokens} image tokens"
    cuts = [
        f"{n} after layer {cut.after}" for cut, n in zip(caption.plan, report.n_kept, strict=True)
    ]
    if cuts:
        tokens += f", kept {', '.join(cuts)} (mean over layers {report.tokens_mean:.1f})"
    return (
        f"{tokens}; encode {report.t_encode:.0f} ms, prefill {report.t_prefill:.0f} ms, "
        f"decode {report.t_decode:.0f} ms for {report.n_decoded} tokens; "
        f"KV cache {report.kv_bytes / 2**20:.2f} MiB"
    )
