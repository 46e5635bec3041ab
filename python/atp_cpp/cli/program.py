"""The program ``atp-cpp``: its arguments, its exit codes, and how it prints errors.

Exit codes: 0 all inputs succeeded, 1 some inputs failed (each is named), 2 wrong arguments or an
error of the model, 130 interrupted.
"""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Sequence
from typing import Any

from atp_cpp import _core
from atp_cpp.cli import caption as cmd_caption
from atp_cpp.cli import convert as cmd_convert
from atp_cpp.cli import eval as cmd_eval
from atp_cpp.cli import explain as cmd_explain
from atp_cpp.cli import inspect as cmd_inspect
from atp_cpp.cli import train as cmd_train
from atp_cpp.cli.arguments import fetch_model
from atp_cpp.cli.terminal import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_PIPE_CLOSED,
    PROGRAM,
    Output,
    OutputError,
    notes_on_stderr,
    silence_stdout,
)
from atp_cpp.errors import AtpError

_COMMANDS = (cmd_caption, cmd_explain, cmd_eval, cmd_train, cmd_convert, cmd_inspect)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Captions images with GGUF vision models, with image tokens dropped "
        "between decoder layers.",
        epilog="Exit codes: 0 all good, 1 some inputs failed, 2 usage or model error, "
        "130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"{PROGRAM} {_core.__version__}",
    )
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", parser_class=_Parser
    )
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """The parser of a command: it refuses unknown arguments with the usage of this command."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The known arguments. An unknown argument is an error of this command's parser."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    Args:
        argv: arguments without the program's name; the process's own if None.

    Returns:
        The exit code.
    """
    output = Output()
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return EXIT_ERROR
    _core.set_verbose(args.verbose)
    try:
        with notes_on_stderr(output):
            fetch_model(args)
            code: int = args.run(args, output)
        output.flush()
        return code
    except KeyboardInterrupt:
        output.note("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        silence_stdout()
        return EXIT_PIPE_CLOSED
    except AtpError as error:
        _show(output, str(error), args.verbose)
        return EXIT_ERROR
    except OutputError as error:
        silence_stdout()
        output.error(f"standard output: {error}")
        return EXIT_ERROR
    except Exception as error:
        hint = "" if args.verbose else "; --verbose shows where"
        _show(output, f"{type(error).__name__}: {error}{hint}", args.verbose)
        return EXIT_ERROR


def _show(output: Output, message: str, verbose: bool) -> None:
    if verbose:
        traceback.print_exc()
    output.error(message)
