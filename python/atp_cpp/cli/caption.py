"""``atp-cpp caption``: captions one image on the terminal, or many images into files."""

from __future__ import annotations

import argparse
import glob
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from atp_cpp.batch.load.heap import large_blocks_apart
from atp_cpp.batch.output.parquet import check_pyarrow, jsonl_to_parquet
from atp_cpp.batch.output.rows import failed_row, good_row
from atp_cpp.batch.output.rows_file import RowsFile
from atp_cpp.batch.output.sink import Sink
from atp_cpp.batch.output.text_files import TextFiles
from atp_cpp.batch.run.embeddings import EmbeddingCache
from atp_cpp.batch.source.inputs import count_of, items_of
from atp_cpp.batch.source.lists import is_web_address
from atp_cpp.caption import Caption
from atp_cpp.captioner import Captioner
from atp_cpp.cli.arguments import (
    add_model_arguments,
    add_policy_arguments,
    open_captioner,
    policy_from,
)
from atp_cpp.cli.caption_run import Printer, run_captions
from atp_cpp.cli.run_arguments import (
    add_inputs,
    add_outputs,
    add_questions,
    add_speed,
    prompts_from,
    sampling_from,
)
from atp_cpp.cli.terminal import EXIT_INTERRUPTED, EXIT_OK, Output, is_terminal
from atp_cpp.errors import AtpError
from atp_cpp.images.load import Pixels, load_image, open_file
from atp_cpp.images.urls import load_url
from atp_cpp.options.plan import PolicyLike, SamplingConfig
from atp_cpp.storage.digest import sha256_hex
from atp_cpp.storage.output_files import check_no_input, check_replaces, is_parquet

_TAR = (".tar", ".tar.gz", ".tgz")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "caption", help="caption images, or answer a question about each", allow_abbrev=False
    )
    add_inputs(parser)
    add_questions(parser)
    add_outputs(parser)
    add_speed(parser)
    add_policy_arguments(parser)
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, output: Output) -> int:
    """Captions all images. An image that cannot be captioned only spoils its own row."""
    plan, sampling, prompts = policy_from(args), sampling_from(args), prompts_from(args)
    _check(args)
    if _is_single(args, prompts):
        return _run_single(args, output, plan, sampling, prompts[0])
    return _run_many(args, output, plan, sampling, prompts)


def _check(args: argparse.Namespace) -> None:
    """Raises AtpError for arguments that do not go together."""
    if not (args.images or args.filelist or args.jsonl):
        raise AtpError("expected an image, a folder, a pattern or a tar; or --filelist or --jsonl")
    for name in ("parquet", "retry_failed"):
        if getattr(args, name) and not args.out:
            raise AtpError(f"--{name.replace('_', '-')} needs the rows of --out F.jsonl")
    if args.parquet:
        check_pyarrow()
    inputs = [*args.images, args.filelist, args.jsonl, args.prompt_file, args.json_schema]
    inputs += [args.grammar, args.model, args.mmproj, args.atp]
    check_no_input("--out", args.out, inputs)
    check_no_input("--parquet", args.parquet, [*inputs, args.out])
    check_replaces("--parquet", args.parquet, force=args.force, is_ours=is_parquet)
    several = args.filelist or args.jsonl or args.out or args.txt or args.shard
    if args.together and (several or len(args.prompt or ()) > 1):
        raise AtpError(
            "--together is one question over the images named, on standard output: no --filelist, "
            "--jsonl, --shard, --out, --txt or second -p goes with it"
        )
    if "-" in args.images and not args.together and (len(args.images) > 1 or several):
        raise AtpError(
            "- is one image on stdin, named alone; write it into a file to caption it with others"
        )


def _is_single(args: argparse.Namespace, prompts: tuple[str, ...]) -> bool:
    """Whether the command has exactly one image file and one question."""
    several = args.filelist or args.jsonl or args.out or args.txt or len(prompts) > 1
    if args.together:
        return True
    if several or len(args.images) != 1:
        return False
    if args.images[0] == "-" or is_web_address(args.images[0]):
        return len(prompts) == 1
    name = args.images[0]
    if os.path.isdir(name) or name.lower().endswith(_TAR):
        return False
    return os.path.lexists(name) or not glob.has_magic(name)


def _run_single(
    args: argparse.Namespace,
    output: Output,
    plan: PolicyLike,
    sampling: SamplingConfig,
    prompt: str,
) -> int:
    started = time.perf_counter()
    loaded = [
        _load(name, args.allow_http) for name in args.images
    ]  # fails before a model is loaded
    t_load = 1000 * (time.perf_counter() - started)
    pixels = [image for image, _ in loaded]
    sha256 = loaded[0][1] if len(loaded) == 1 else ""
    with open_captioner(args, output, plan) as captioner:
        name = _joined(args.images)
        job = _Single(captioner, name, prompt, sampling, output, args.json, sha256)
        return job.run(pixels, t_load)


def _load(name: str, allow_http: bool) -> tuple[Pixels, str]:
    """One image from a file, stdin or the web, and the SHA-256 of its bytes ("" for the web)."""
    if is_web_address(name) and allow_http:
        return load_url(name, allow_http=True), ""
    if name == "-":
        data = sys.stdin.buffer.read()
    else:
        with open_file(name, name, pipes=True) as stream:  # a pipe can be read once
            data = stream.read()
    name = "stdin" if name == "-" else name
    return load_image(data, name=name), sha256_hex(data)


def _joined(names: list[str]) -> str:
    return ", ".join("stdin" if name == "-" else name for name in names)


def _run_many(
    args: argparse.Namespace,
    output: Output,
    plan: PolicyLike,
    sampling: SamplingConfig,
    prompts: tuple[str, ...],
) -> int:
    named = {
        "recursive": args.recursive,
        "filelist": args.filelist,
        "jsonl": args.jsonl,
        "shard": args.shard,
    }
    # says what is wrong with the names
    items = items_of(args.images, prompts=prompts, allow_http=args.allow_http, **named)
    large_blocks_apart()
    with ExitStack() as stack:
        rows, texts, embeddings = None, None, None
        if args.out:
            rows = stack.enter_context(
                RowsFile(args.out, retry_failed=args.retry_failed, resume=args.resume)
            )
        if args.txt:
            read = (args.filelist, args.jsonl, args.prompt_file, args.json_schema, args.grammar)
            texts = TextFiles(args.existing, filter(None, read))
        captioner = stack.enter_context(
            open_captioner(args, output, plan, n_threads_encode=args.threads_encode)
        )
        if args.embedding_cache:
            embeddings = EmbeddingCache(args.embedding_cache, args.embedding_cache_size)
        sink = None
        if rows is not None or texts is not None:
            sink = Sink(
                rows=rows, texts=texts, config_hash=captioner.config_hash(sampling=sampling)
            )
        code = run_captions(
            partial(
                captioner.caption_many,
                sampling=sampling,
                batch_size=args.parallel,
                ordered=sink is None,
                kv_budget=args.kv_budget,
                embeddings=embeddings,
                n_load_threads=args.load_threads,
                on_error=args.on_error,
            ),
            items,
            sink,
            Printer(output, json=args.json, text=sink is None),
            total=_count(args, named, sink is not None),
            how_to_resume=_how_to_resume(args),
        )
    if args.parquet:
        n_rows = jsonl_to_parquet(args.out, args.parquet)
        output.note(f"{args.parquet}: {n_rows:,} rows")
    return code


def _count(args: argparse.Namespace, named: dict[str, Any], into_files: bool) -> int | None:
    """The number of images for the progress bar; None without a bar or if it is unknown."""
    return count_of(args.images, **named) if into_files or is_terminal(sys.stderr) else None


def _how_to_resume(args: argparse.Namespace) -> str:
    if args.out:
        return f"interrupted; rows so far are in {args.out}: the same command again goes on there"
    if args.txt and args.existing == "skip":
        return "interrupted; the same command again goes on with the images that have no text yet"
    return "with --out F.jsonl the same command again would go on from there"


@dataclass
class _Single:
    """One image whose caption is printed while it is generated."""

    captioner: Captioner
    image: str
    prompt: str
    sampling: SamplingConfig
    output: Output
    json: bool
    sha256: str
    pieces: list[str] = field(default_factory=list)

    def run(self, pixels: list[Pixels], t_load: float) -> int:
        streamed = not self.json and is_terminal(sys.stdout)
        try:
            caption = self._caption(pixels, t_load, streamed)
        except KeyboardInterrupt:
            return self._interrupted(streamed)
        if streamed:
            self.output.piece("\n")
        elif self.json:
            row = good_row(
                self.image,
                self.prompt,
                caption,
                self.captioner.files,
                self.sampling.seed,
                sha256=self.sha256,
                config_hash=self.captioner.config_hash(sampling=self.sampling),
            )
            self.output.row(row.as_dict())
        else:
            self.output.result(caption.text)
        if not self.json:
            self.output.note(cost_line(caption))
        return EXIT_OK

    def _caption(self, pixels: list[Pixels], t_load: float, streamed: bool) -> Caption:
        def on_token(piece: str) -> bool:
            if streamed:
                self.output.piece(piece if any(self.pieces) else piece.lstrip())
            self.pieces.append(piece)
            return True

        return self.captioner.caption_pixels(
            pixels,
            self.prompt,
            plan=self.captioner.plan,
            sampling=self.sampling,
            on_token=on_token,
            t_load=t_load,
        )

    def _interrupted(self, streamed: bool) -> int:
        partial_text = "".join(self.pieces).strip()
        if streamed:
            self.output.piece("\n")
        elif self.json:
            row = failed_row(
                self.image,
                self.prompt,
                "interrupted",
                self.captioner.files,
                self.sampling.seed,
                plan=self.captioner.plan,
                partial=partial_text,
                sha256=self.sha256,
            )
            self.output.row(row.as_dict())
        elif partial_text:
            self.output.result(partial_text)
        self.output.note("interrupted; the caption is not complete")
        return EXIT_INTERRUPTED


def cost_line(caption: Caption) -> str:
    """Tokens, time and memory of a caption, as a line for a reader."""
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
