"""Checks the user's texts and numbers before they go into the engine."""

from __future__ import annotations

import numbers

from atp_cpp.errors import AtpError

__all__ = ["brief", "check_number", "check_text", "check_whole"]


def brief(value: object) -> str:
    """What was given, for a message: at most 60 characters of it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def check_text(what: str, text: object) -> None:
    """Raises AtpError unless the value is a text that can be written as UTF-8."""
    if not isinstance(text, str):
        raise AtpError(f"{what}: expected a text, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AtpError(
            f"{what}: expected Unicode text, got half of a surrogate pair (U+"
            f"{ord(text[error.start]):04X}) at character {error.start}; decode it as UTF-8"
        ) from None


def check_whole(name: str, value: object) -> None:
    """Raises AtpError unless the value is a whole number of Python or NumPy."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise AtpError(f"{name} must be a whole number, got {brief(value)}")


def check_number(name: str, value: object) -> None:
    """Raises AtpError unless the value is a number."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise AtpError(f"{name} must be a number, got {brief(value)}")
