"""The program ``atp-cpp``: arguments, one module a command, and what is seen of a run."""

from atp_cpp.cli.program import main

__all__ = ["main"]
