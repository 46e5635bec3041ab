"""``atp-cpp convert``: Hugging Face checkpoints and trained ATP modules into GGUF files."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from tqdm import tqdm

from atp_cpp.cli.arguments import add_verbose
from atp_cpp.cli.terminal import EXIT_OK, Output, is_terminal
from atp_cpp.convert import ConvertedFile, convert_atp, convert_hf
from atp_cpp.convert.run import MMPROJ_TYPES, TEXT_TYPES
from atp_cpp.errors import ConvertError
from atp_cpp.inspect.sidecar import sidecar_facts


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "convert",
        help="Hugging Face checkpoint, trained ATP modules -> GGUF",
        description="Writes NAME-TYPE.gguf (the text model) and mmproj-NAME-TYPE.gguf (the vision "
        "projector) of a checkpoint; with --atp the sidecar of its trained modules, too. Without "
        "SOURCE, --atp converts the modules alone.",
        allow_abbrev=False,
    )
    source = parser.add_argument_group("what to convert")
    source.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        help="folder with config.json and *.safetensors, or a hub id (org/name)",
    )
    source.add_argument(
        "--atp", metavar="DIR", help="folder that training wrote (atp.json, atp.npz)"
    )
    source.add_argument(
        "--vision-tower",
        metavar="DIR",
        help="encoder of a checkpoint in LLaVA's original layout that has none inside (default: "
        "the one that its config.json names)",
    )
    source.add_argument("--revision", metavar="R", help="branch, tag or commit on the hub")
    add_output_arguments(parser)
    add_verbose(parser)
    parser.set_defaults(run=run)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write, and in what types."""
    group = parser.add_argument_group("where to")
    group.add_argument("--outfile-dir", metavar="DIR", help="folder for the files of SOURCE")
    group.add_argument(
        "--outfile",
        metavar="FILE",
        help="of --atp alone: file to write, or a folder for it (default: beside its source, "
        "atp-MODEL-f32.gguf)",
    )
    group.add_argument(
        "--model-name",
        metavar="NAME",
        help="in the files and in their names (default: that of the folder or repository)",
    )
    group.add_argument(
        "--outtype",
        choices=TEXT_TYPES,
        help="of the text model; auto: bf16 or f16, as the checkpoint has it (default)",
    )
    group.add_argument(
        "--mmproj-outtype",
        choices=MMPROJ_TYPES,
        help="of the vision projector; auto: f16 (default)",
    )
    group.add_argument("--force", action="store_true", help="replace files that are there")
    group.add_argument(
        "--dry-run", action="store_true", help="check everything and say what would be written"
    )


def run(args: argparse.Namespace, output: Output) -> int:
    """Converts; the files' names go to stdout, in a dry run what would be in them."""
    if args.source is None:
        _convert_modules(args, output)
    else:
        _convert_checkpoint(args, output)
    return EXIT_OK


def _convert_checkpoint(args: argparse.Namespace, output: Output) -> None:
    if args.outfile_dir is None:
        raise ConvertError("expected --outfile-dir DIR, the folder for the GGUF files")
    if args.outfile is not None:
        raise ConvertError("--outfile is for --atp alone; with SOURCE use --outfile-dir")
    with _Bar() as bar:
        files = convert_hf(
            args.source,
            args.outfile_dir,
            outtype=args.outtype or "auto",
            mmproj_outtype=args.mmproj_outtype or "auto",
            atp=args.atp,
            model_name=args.model_name,
            revision=args.revision,
            force=args.force,
            dry_run=args.dry_run,
            verbose=args.verbose,
            vision_tower=args.vision_tower,
            on_progress=bar.show,
        )
    if args.dry_run:
        output.note("dry run, nothing was written")
    for file in files:
        output.note(f"{file.what}: {file.size_bytes} bytes")
        output.result(str(file.path))
    if not args.dry_run:
        output.note(f"try: {_caption_command(files)}")


def _caption_command(files: tuple[ConvertedFile, ...]) -> str:
    flags = ("-m", "--mmproj", "--atp")
    parts = " ".join(f"{flag} {file.path}" for flag, file in zip(flags, files, strict=False))
    return f"atp-cpp caption IMAGE {parts}"


def _convert_modules(args: argparse.Namespace, output: Output) -> None:
    if args.atp is None:
        raise ConvertError(
            "expected SOURCE (a checkpoint's folder or hub id), or --atp DIR (trained modules)"
        )
    if args.outfile_dir is not None:
        raise ConvertError("--outfile-dir is for SOURCE; the file of --atp alone is --outfile FILE")
    for option in ("model_name", "outtype", "mmproj_outtype", "revision", "vision_tower"):
        if getattr(args, option) is not None:
            raise ConvertError(
                f"--{option.replace('_', '-')} is for SOURCE; --atp alone is converted as it is"
            )
    done = convert_atp(args.atp, args.outfile, force=args.force, dry_run=args.dry_run)
    if args.dry_run:
        output.note("dry run, nothing was written")
        output.result("\n".join(sidecar_facts(done.sidecar, done.path, done.size_bytes).lines()))
    else:
        output.note(f"{done.size_bytes} bytes; give it with --atp, beside its model in -m")
        output.result(str(done.path))


class _Bar:
    """A bar of bytes for each file, on a terminal only."""

    def __init__(self) -> None:
        self._bar: tqdm[NoReturn] | None = None
        self._what = ""

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def show(self, what: str, done: int, total: int) -> None:
        """Moves the bar of `what`; another one begins with another name. Sizes in bytes."""
        if not is_terminal(sys.stderr):
            return
        if self._bar is None or self._what != what:
            self._close()
            self._what = what
            self._bar = tqdm(
                desc=what,
                total=total,
                unit="B",
                unit_scale=True,
                file=sys.stderr,
                dynamic_ncols=True,
            )
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
