"""SOURCE, a local folder or a hub id, -> a local folder.

A folder that is there wins over a repository of the same name. The user's own hub settings hold:
token, cache, endpoint and offline mode (HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_ENDPOINT,
HF_HUB_OFFLINE).
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from atp_cpp.errors import ConvertError

__all__ = ["fetch"]

# tells an id from a path; the hub itself has a stricter rule and explains its errors
_HUB_ID = re.compile(r"(?!\.)[\w.-]+/(?!\.)[\w.-]+")

# an address of any hub: the client asks the host that it is set to (HF_ENDPOINT)
_ADDRESS = re.compile(r"https?://[^/]+(?P<path>.*)", re.IGNORECASE)

_log = logging.getLogger(__name__)


def fetch(
    source: str,
    *,
    revision: str | None = None,
    dry_run: bool = False,
    before_download: Callable[[Path, str], object] | None = None,
) -> tuple[Path, str]:
    """The folder of a checkpoint, downloaded if it has to be, and the name for its output files.

    Args:
        source: a folder, or a repository of the hub, "org/name" or its address there.
        revision: of the repository: a branch, tag or commit; its main branch without.
        dry_run: download no weights. The folder, if it is not in the cache already, is then a
            temporary one whose weight files have their headers and, in the place of the data,
            a hole (zeros that take no space).
        before_download: called with folder and name as in a dry run when weights are about to be
            downloaded; what it raises stops that. Of PyTorch's own weight files, whose headers
            cannot be had alone, nothing is in that folder.

    Raises:
        ConvertError: it is neither, the repository or the revision is not there or not ours to
            read, the hub cannot be reached, there is no space, or huggingface-hub is missing.
    """
    source, revision = _from_address(source, revision)
    local = Path(os.path.expanduser(source))
    if source and os.path.lexists(local):
        if revision is not None:
            raise ConvertError(
                f"{source} is a local {'folder' if local.is_dir() else 'file'}, which has no "
                f"revisions; leave --revision {revision} out"
            )
        return local, _name_of(local)
    if not _HUB_ID.fullmatch(source):
        raise ConvertError(
            f"{source}: no folder {local.absolute()}, and no hub id, which is org/name; name one "
            "of them"
        )
    name = source.split("/")[1]
    look = None if before_download is None else partial(_called, before_download, name)
    return _from_hub(source, revision, dry_run, look), name


def _from_address(source: str, revision: str | None) -> tuple[str, str | None]:
    """An address copied from a browser, as org/name and revision; anything else as it is.

    Raises:
        ConvertError: it is an address, but not of a repository of models, or names two revisions.
    """
    found = _ADDRESS.match(source)
    if found is None:
        return source, revision
    parts = [part for part in re.split(r"[?#]", found["path"])[0].split("/") if part]
    if (
        len(parts) < 2
        or parts[0] in ("datasets", "spaces")
        or not _HUB_ID.fullmatch("/".join(parts[:2]))
    ):
        raise ConvertError(f"{source}: expected the address of a model's repository, or org/name")
    named = parts[3] if len(parts) > 3 and parts[2] in ("tree", "blob", "resolve") else None
    if named and revision and named != revision:
        raise ConvertError(
            f"{source} names the revision {named}, --revision says {revision}; leave one out"
        )
    return "/".join(parts[:2]), revision or named


def _called(look: Callable[[Path, str], object], name: str, folder: Path) -> None:
    """Calls `look` with a folder of headers, and deletes the folder afterwards."""
    try:
        look(folder, name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _name_of(folder: Path) -> str:
    """The folder's name; for a snapshot in the hub's cache, the name of the repository.

    Such a path is …/models--org--name/snapshots/<commit>.
    """
    whole = Path(os.path.abspath(folder))
    if whole.parent.name == "snapshots" and whole.parents[1].name.startswith("models--"):
        return whole.parents[1].name.split("--")[-1]
    return whole.name or "model"


def _from_hub(
    repo: str, revision: str | None, dry_run: bool, look: Callable[[Path], None] | None
) -> Path:
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise ConvertError(
            f"{repo}: no folder {Path(repo).absolute()}, and downloading from the hub needs the "
            'huggingface-hub package, which is not installed; pip install "atp_cpp[convert]", '
            "which brings it and all else that converting needs"
        ) from error
    from atp_cpp.hub import checkpoint as hub
    from atp_cpp.hub import client

    with _named_failures(repo, revision), client.quiet():
        if client.is_offline():
            return hub.cached_folder(repo, revision)
        try:
            repository = hub.read_listing(repo, revision)
        except Exception as error:
            if not client.is_unreachable(error):
                raise
            with _or_else(error):
                folder = hub.cached_folder(repo, revision)
            _log.warning("%s cannot be reached; taking %s from the cache", client.endpoint(), repo)
            return folder
        missing = hub.missing_files(repository)
        if not missing:
            return hub.download(repository, missing)  # only notes the revision in the cache
        if dry_run:
            _log.info("would download %s", hub.listed(missing))
            return hub.headers_only(repository)
        hub.check_space(repository, missing)
        if look:
            known = hub.headers_only if hub.has_headers(repository) else hub.small_only
            hollow = known(repository)
    if look:
        look(hollow)
    with _named_failures(repo, revision), client.quiet():
        _log.info("downloading %s", hub.listed(missing))
        return hub.download(repository, missing)


@contextmanager
def _or_else(first: Exception) -> Iterator[None]:
    """Raises the first error if the cache has nothing either: the first error tells more."""
    try:
        yield
    except Exception:
        raise first from None


@contextmanager
def _named_failures(repo: str, revision: str | None) -> Iterator[None]:
    """Says what happened, and what to do, in one line."""
    from huggingface_hub import errors

    try:
        yield
    except ConvertError:
        raise
    except errors.GatedRepoError as error:
        raise ConvertError(_gated(repo)) from error
    except errors.RepositoryNotFoundError as error:
        raise ConvertError(_not_found(repo)) from error
    except errors.RevisionNotFoundError as error:
        raise ConvertError(
            f"{repo} has no revision {revision}; --revision takes one of its branches, tags or "
            "commits"
        ) from error
    except errors.HFValidationError as error:
        raise ConvertError(f"{repo} is no folder and no hub id: {error}") from error
    except errors.LocalEntryNotFoundError as error:
        raise ConvertError(_not_cached(repo, revision)) from error
    except errors.HfHubHTTPError as error:
        raise ConvertError(_refused(repo, error)) from error
    except Exception as error:
        named = _broken(repo, error)
        if named is None:
            raise
        raise ConvertError(named) from error


def _gated(repo: str) -> str:
    from atp_cpp.hub import client

    token = "the token in use has no access" if client.has_token() else "no token is set"
    return (
        f"{repo} is gated and {token}; accept its terms at {client.endpoint()}/{repo}, then log in "
        "with that account (hf auth login, or the variable HF_TOKEN)"
    )


def _not_found(repo: str) -> str:
    from atp_cpp.hub import client

    token = "the token in use has no access" if client.has_token() else "no token is set"
    return (
        f"{repo}: no folder {Path(repo).absolute()}, and no such repository at "
        f"{client.endpoint()}; or it is private and {token} (hf auth login, or the variable "
        "HF_TOKEN)"
    )


def _not_cached(repo: str, revision: str | None) -> str:
    from atp_cpp.hub import client

    at = f" at revision {revision}" if revision else ""
    return (
        f"{repo}{at} is not in the cache {client.cache_folder()}, and the hub is offline; unset "
        "HF_HUB_OFFLINE, or name a local folder"
    )


def _refused(repo: str, error: Any) -> str:
    from atp_cpp.hub import client

    status = getattr(error.response, "status_code", None)
    if status in (401, 403):
        advice = "log in with an account that may read it (hf auth login, or HF_TOKEN)"
    elif status == 429:
        advice = "wait a few minutes and run again; what was downloaded is kept"
    else:
        advice = "run again later; what was downloaded is kept"
    return f"{repo}: {client.endpoint()} answered {status}; {advice}"


def _broken(repo: str, error: Exception) -> str | None:
    """What to say of an error of the disk or of the connection; None for any other."""
    from atp_cpp.hub import checkpoint as hub
    from atp_cpp.hub import client

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"{repo}: no space left in the cache {client.cache_folder()} ({error.strerror}); free "
            "some, or name another place with HF_HUB_CACHE, and run again: the download resumes"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return (
            f"{error.filename}: cannot be written: {error.strerror}; name another place for the "
            "cache with HF_HUB_CACHE"
        )
    if client.is_unreachable(error) or isinstance(error, OSError):
        reason = " ".join(str(error).split()) or "no answer"
        if not hub.has_partial(repo):
            return (
                f"{repo}: the connection to {client.endpoint()} failed ({reason}); check it and "
                "run again, or name a local folder"
            )
        return (
            f"{repo}: the download from {client.endpoint()} broke off ({reason}); check the "
            "connection and run again: it resumes"
        )
    return None
