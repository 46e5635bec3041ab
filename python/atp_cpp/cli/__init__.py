"""The program ``atp-cpp``: its arguments, one module for each command, and its output."""

from atp_cpp.cli.program import main

__all__ = ["main"]
