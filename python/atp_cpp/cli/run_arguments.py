"""Arguments of a run over many images: inputs, outputs, and how many captions run at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from atp_cpp.batch.load.loading import N_THREADS
from atp_cpp.batch.run.room import parse_size
from atp_cpp.batch.source.shard import parse_shard
from atp_cpp.cli.arguments import add_draw, add_force, draw_from, whole
from atp_cpp.errors import AtpError
from atp_cpp.options.plan import SamplingConfig
from atp_cpp.prompts.prompt import DEFAULT_PROMPT

DEFAULT_PARALLEL = 16

T = TypeVar("T")


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """IMAGE…, --recursive, --allow-http, --together, --filelist, --jsonl, --shard."""
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="image files, folders, patterns such as 'photos/*.jpg', tar files (webdataset); "
        "- for one image on stdin",
    )
    group = parser.add_argument_group("images")
    group.add_argument("--recursive", action="store_true", help="folders with all their folders")
    group.add_argument(
        "--allow-http", action="store_true", help="fetch http:// and https:// addresses of images"
    )
    group.add_argument(
        "--together", action="store_true", help="one question over all named images, one answer"
    )
    group.add_argument("--filelist", metavar="F", help="a text file, one image a line; - for stdin")
    group.add_argument(
        "--jsonl", metavar="F", help='a line each: {"image": …, "custom_id": …, "prompt": …}'
    )
    group.add_argument(
        "--shard",
        type=_argument(parse_shard),
        metavar="i/n",
        help="only the i-th of n parts of the images, 1/n to n/n, for several machines",
    )


def add_questions(parser: argparse.ArgumentParser) -> None:
    """-p, --prompt-file, -n, --temp, --seed, --json-schema, --grammar, --stop-on-repetition."""
    group = parser.add_argument_group("question and answer")
    group.add_argument(
        "-p",
        "--prompt",
        action="append",
        metavar="TEXT",
        help=f"repeat it for several answers an image (default: {DEFAULT_PROMPT})",
    )
    group.add_argument("--prompt-file", metavar="F", help="a file that holds the prompt")
    add_draw(group)
    group.add_argument(
        "--json-schema",
        metavar="JSON|F",
        help="answers are JSON of this schema, given as text or as a file",
    )
    group.add_argument("--grammar", metavar="GBNF|F", help="answers follow this llama.cpp grammar")
    group.add_argument(
        "--stop-on-repetition",
        action="store_true",
        help="end an answer that repeats itself word for word",
    )


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Where rows and texts are written, and what happens to existing files."""
    group = parser.add_argument_group("results")
    group.add_argument("--json", action="store_true", help="JSON rows on standard output")
    group.add_argument(
        "--out", metavar="F.jsonl", help="rows into this file; the same command again goes on there"
    )
    group.add_argument("--txt", action="store_true", help="a .txt file beside each image")
    group.add_argument(
        "--existing",
        choices=("skip", "overwrite", "append", "prepend"),
        default="skip",
        help="what --txt does with a file that is there (default: %(default)s)",
    )
    group.add_argument(
        "--parquet", metavar="F.parquet", help="the rows of --out as a table too, at the end"
    )
    add_force(group)
    group.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with an --out file that is there (default); --no-resume refuses to",
    )
    group.add_argument(
        "--retry-failed", action="store_true", help="caption again what failed in an earlier run"
    )
    group.add_argument(
        "--on-error",
        choices=("record", "stop"),
        default="record",
        help="record: a bad image is a row and the run goes on (default)",
    )


def add_speed(parser: argparse.ArgumentParser) -> None:
    """-np, --kv-budget, --threads-encode, --load-threads, --embedding-cache and its size."""
    group = parser.add_argument_group("speed")
    group.add_argument(
        "-np",
        "--parallel",
        type=whole(1),
        default=DEFAULT_PARALLEL,
        metavar="N",
        help="captions decoded together (default: %(default)s)",
    )
    group.add_argument(
        "--kv-budget",
        type=_argument(parse_size),
        metavar="SIZE",
        help="memory for their KV caches, for instance 2G (default: half of what is free)",
    )
    group.add_argument(
        "--threads-encode",
        type=whole(0),
        default=0,
        metavar="N",
        help="threads more, of the vision encoder, which then works beside the decoder "
        "(default: they take turns)",
    )
    group.add_argument(
        "--load-threads",
        type=whole(1),
        default=N_THREADS,
        metavar="N",
        help="threads that open images (default: %(default)s)",
    )
    group.add_argument(
        "--embedding-cache",
        metavar="DIR",
        help="keep what the vision encoder gave, for later runs over the same images",
    )
    group.add_argument(
        "--embedding-cache-size",
        type=_argument(parse_size),
        default=parse_size("2G"),
        metavar="SIZE",
        help="of that folder (default: 2G)",
    )


def prompts_from(args: argparse.Namespace) -> tuple[str, ...]:
    """The prompts of -p and --prompt-file, or the default one.

    Raises:
        AtpError: a file cannot be read, or holds no text.
    """
    prompts = list(args.prompt or [])
    if args.prompt_file is not None:
        prompts.append(_read(args.prompt_file, "--prompt-file").strip())
        if not prompts[-1]:
            raise AtpError(f"--prompt-file {args.prompt_file}: expected a prompt, got no text")
    doubled = [text for i, text in enumerate(prompts) if text in prompts[:i]]
    if doubled:
        raise AtpError(f"the prompt {doubled[0]!r} is given twice; an image has one answer to each")
    return tuple(prompts) or (DEFAULT_PROMPT,)


def sampling_from(args: argparse.Namespace) -> SamplingConfig:
    """How answers are drawn.

    Raises:
        AtpError: a value is out of range, or a file cannot be read.
    """
    return replace(
        draw_from(args),
        json_schema=_text_or_file(args.json_schema, "--json-schema", start="{"),
        grammar=_text_or_file(args.grammar, "--grammar", start="root"),
        stop_on_repetition=args.stop_on_repetition,
    )


def _text_or_file(value: str | None, option: str, *, start: str) -> str:
    if value is None:
        return ""
    if value.lstrip().startswith(start) or "\n" in value:
        return value
    return _read(value, option)


def _read(path: str, option: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise AtpError(f"{option} {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise AtpError(f"{option} {path}: expected a text file in UTF-8") from None


def _argument(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Makes a function that raises AtpError an argument type: argparse prints the message."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except (AtpError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert
