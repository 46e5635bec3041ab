#!/usr/bin/env python3
"""Trained ATP modules into a sidecar GGUF file, under the name llama.cpp's converters have.

    python tools/convert_atp_to_gguf.py DIR --outfile FILE

The same as ``atp-cpp convert --atp DIR --outfile FILE``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from atp_cpp import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    for at, argument in enumerate(args):
        if not argument.startswith("-") and (at == 0 or args[at - 1] != "--outfile"):
            args.insert(at, "--atp")
            break
    return cli.main(["convert", *args])


if __name__ == "__main__":
    sys.exit(main())
