"""huggingface_hub's settings and failures, in one place.

Everything imports huggingface_hub, so nothing imports this module before it is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HfHubHTTPError


def is_offline() -> bool:
    """Whether the user has switched the hub off."""
    return bool(constants.HF_HUB_OFFLINE)


def has_token() -> bool:
    """Whether the user is logged in, or has HF_TOKEN set."""
    return token() is not None


def endpoint() -> str:
    """The hub's address."""
    return str(constants.ENDPOINT)


def cache_folder() -> Path:
    """Where huggingface_hub keeps its files."""
    return Path(constants.HF_HUB_CACHE).expanduser()


def is_unreachable(error: BaseException) -> bool:
    """Whether the hub could not be reached, or failed on its side.

    The HTTP client differs between versions of huggingface_hub; its errors are the bases of
    huggingface_hub's own.
    """
    if isinstance(error, HfHubHTTPError):
        return getattr(error.response, "status_code", 0) >= 500
    too_wide = (object, BaseException, Exception, OSError)
    bases = tuple(base for base in HfHubHTTPError.__mro__ if base not in too_wide)
    return isinstance(error, (*bases, ConnectionError, TimeoutError))


@contextmanager
def quiet() -> Iterator[None]:
    """Without huggingface_hub's log of each attempt: our own error says how it ended."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def token() -> str | None:
    """The token that requests carry; None without one."""
    return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
