"""``atp-cpp convert``: trained ATP modules into the GGUF file that ``--atp`` takes."""

from __future__ import annotations

import argparse

from atp_cpp.cli_args import add_verbose
from atp_cpp.convert import convert_atp
from atp_cpp.inspect_sidecar import sidecar_facts
from atp_cpp.terminal import EXIT_OK, Output


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "convert", help="trained ATP modules -> sidecar GGUF", allow_abbrev=False
    )
    source = parser.add_argument_group("what to convert")
    source.add_argument(
        "--atp",
        metavar="DIR",
        required=True,
        help="folder that training wrote (atp.json, atp.npz)",
    )
    add_output_arguments(parser)
    add_verbose(parser)
    parser.set_defaults(run=run)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """--outfile, --force and --dry-run."""
    group = parser.add_argument_group("where to")
    group.add_argument(
        "--outfile",
        metavar="FILE",
        help="file to write, or a folder for it (default: beside its source, atp-MODEL-f32.gguf)",
    )
    group.add_argument("--force", action="store_true", help="replace a file that is there")
    group.add_argument(
        "--dry-run", action="store_true", help="check everything and say what would be written"
    )


def run(args: argparse.Namespace, output: Output) -> int:
    """Converts; the file's name goes to stdout, in a dry run what would be in it."""
    done = convert_atp(args.atp, args.outfile, force=args.force, dry_run=args.dry_run)
    if args.dry_run:
        output.note("dry run, nothing was written")
        output.result("\n".join(sidecar_facts(done.sidecar, done.path, done.size_bytes).lines()))
    else:
        output.note(f"{done.size_bytes} bytes; give it with --atp, beside its model in -m")
        output.result(str(done.path))
    return EXIT_OK
