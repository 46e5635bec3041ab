"""``atp-cpp inspect FILE``: prints the content of a GGUF file, and whether pruning can run."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from atp_cpp.cli.arguments import add_devices, add_verbose
from atp_cpp.cli.terminal import EXIT_OK, Output
from atp_cpp.inspect.file import inspect_file


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "inspect", help="what is in a GGUF file, where it can be cut", allow_abbrev=False
    )
    parser.add_argument("file", metavar="GGUF", help="text model, vision projector or ATP sidecar")
    parser.add_argument(
        "-m", "--model", metavar="GGUF", help="does the projector, or the sidecar, fit this model?"
    )
    parser.add_argument("--json", action="store_true", help="one JSON row")
    add_devices(parser)
    add_verbose(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, output: Output) -> int:
    """Prints the facts."""
    facts = inspect_file(
        args.file, model=args.model, n_gpu_layers=args.n_gpu_layers, n_threads=args.threads
    )
    if args.json:
        output.row(asdict(facts))
    else:
        output.result("\n".join(facts.lines()))
    return EXIT_OK
