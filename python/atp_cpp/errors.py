"""The error tree, the same names in C++ and in Python.

``AtpError`` is the base of all: catch it to catch everything that bad input can cause.
``ModelError``: a model or projector file that cannot be used. ``ImageError``: an image that cannot
become image tokens. ``PlanError``: cuts and policies that this model cannot run. ``StageError``: a
failure while stages run (context too small, memory short, a backend failed).
"""

from atp_cpp._core import AtpError, ImageError, ModelError, PlanError, StageError

__all__ = ["AtpError", "ImageError", "ModelError", "PlanError", "StageError"]
