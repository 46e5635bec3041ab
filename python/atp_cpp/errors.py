"""The error tree, the same names in C++ and in Python.

``AtpError`` is the base of all: catch it to catch everything that bad input can cause.
``ModelError``: a model or projector file that cannot be used. ``ImageError``: an image that cannot
become image tokens. ``PlanError``: cuts and policies that this model cannot run. ``StageError``: a
failure while stages run (context too small, memory short, a backend failed). ``ConvertError``: a
checkpoint that cannot be fetched, read or converted, or output that cannot be written; Python only.
``WriteError``: results of a run over many images cannot be written, so that it has to stop; Python
only.
"""

from atp_cpp._core import AtpError, ImageError, ModelError, PlanError, StageError

__all__ = [
    "AtpError",
    "ConvertError",
    "ImageError",
    "ModelError",
    "PlanError",
    "StageError",
    "WriteError",
]


class ConvertError(AtpError):
    """A checkpoint that cannot be fetched, read or converted, or output that cannot be written.

    The message is one line: what was expected, what came, what to do.
    """


class WriteError(AtpError):
    """Results cannot be written: the run has to stop, since every further row would be lost.

    The message is one line: the file, the reason, what is safe, and how to go on.
    """
