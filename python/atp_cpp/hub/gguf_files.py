"""GGUF files of a repository of the Hugging Face hub: which belong together, and where they are.

Model, vision projector and sidecar are told apart by name: ``mmproj*.gguf`` is a projector,
``atp-*.gguf`` a sidecar, any other ``*.gguf`` a text model. Everything goes through
huggingface-hub, so its settings hold: token, cache, endpoint, offline mode.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from atp_cpp.errors import ModelError

__all__ = ["Choice", "choose", "hub_files", "hub_model"]

_PART = re.compile(
    r"-(\d{5})-of-(\d{5})\.gguf$"
)  # a large file in several; llama.cpp opens the first
_F16 = re.compile(r"(?<![a-z0-9])f16(?![a-z0-9])", re.IGNORECASE)  # not bf16
_USUAL = ("Q4_K_M", "Q8_0")  # what llama.cpp's -hf takes where no type is named


@dataclass(frozen=True, slots=True)
class Choice:
    """Names of files in a repository that belong together.

    Attributes:
        model: the text model; of a model in several parts, the first part.
        mmproj: the vision projector of the model.
        atp: the sidecar of the model; "" without one.
        parts: the other parts of the model.
    """

    model: str
    mmproj: str
    atp: str
    parts: tuple[str, ...] = ()


def hub_model(repo_and_quant: str) -> tuple[Path, Path, Path | None]:
    """The files that ``-hf user/repo[:quant]`` names: model, projector, and sidecar or None.

    Without a quantisation, of several models the usual one of llama.cpp is taken (Q4_K_M, else
    Q8_0).

    Raises:
        ModelError: see Captioner.from_pretrained.
    """
    repo, colon, quant = repo_and_quant.partition(":")
    if colon and not quant:
        raise ModelError(
            f"{repo_and_quant}: nothing after the colon; write for instance {repo}:Q8_0"
        )
    return hub_files(repo, f"*{quant}.gguf" if colon else None, usual=_USUAL)


def hub_files(
    repo: str,
    filename: str | None = None,
    *,
    mmproj: str | None = None,
    atp: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    usual: Sequence[str] = (),
) -> tuple[Path, Path, Path | None]:
    """Paths of model, projector, and sidecar or None, downloaded if they are not in the cache yet.

    Args:
        repo: "org/name".
        filename: name or pattern of the text model, such as "*q4_k_m.gguf"; None where there is
            only one text model.
        mmproj: name or pattern of the vision projector; None for the only ``mmproj*.gguf``, or the
            only one in f16.
        atp: name or pattern of the sidecar; None for the only ``atp-*.gguf``, if there is one.
        revision: branch, tag or commit; None for the main branch.
        token: token for the hub. True or None: the token of the user's login; False: no token.
        cache_dir: folder where files are kept; None for the hub's own cache.
        local_files_only: use the files in the cache only, and do not ask the hub.
        usual: quantisations to choose from when there are several text models and no filename.
    """
    try:
        import huggingface_hub
        from huggingface_hub import constants  # its submodules are no attributes until imported
    except ImportError as error:
        raise ModelError(
            f"{repo}: files of the hub need the huggingface-hub package, which is not installed; "
            'pip install "atp_cpp[hub]"'
        ) from error
    cache: Any = {"cache_dir": cache_dir, "revision": revision, "token": token}
    offline = local_files_only or bool(constants.HF_HUB_OFFLINE)
    with _named_failures(repo, revision, offline):
        if offline:
            folder = Path(
                huggingface_hub.snapshot_download(
                    repo, local_files_only=True, allow_patterns=["*.gguf"], **cache
                )
            )
            names = [p.relative_to(folder).as_posix() for p in folder.rglob("*.gguf")]
        else:
            api = huggingface_hub.HfApi(token=token)
            info = api.model_info(repo, revision=revision, timeout=30)
            names = [file.rfilename for file in info.siblings or []]
        choice = choose(repo, sorted(names), filename, mmproj=mmproj, atp=atp, usual=usual)
        chosen = [choice.model, choice.mmproj, *([choice.atp] if choice.atp else []), *choice.parts]
        paths = [
            huggingface_hub.hf_hub_download(repo, name, local_files_only=offline, **cache)
            for name in chosen
        ]
    if len({path[: -len(name)] for path, name in zip(paths, chosen, strict=True)}) > 1:
        raise ModelError(f"{repo} was changed while it was downloaded; run again")
    return Path(paths[0]), Path(paths[1]), Path(paths[2]) if choice.atp else None


def choose(
    repo: str,
    names: Sequence[str],
    filename: str | None = None,
    *,
    mmproj: str | None = None,
    atp: str | None = None,
    usual: Sequence[str] = (),
) -> Choice:
    """Which files of a repository to load; the arguments have the meaning that hub_files gives.

    Raises:
        ModelError: no file fits, or several files fit; the message lists the files.
    """
    ggufs = [n for n in names if n.lower().endswith(".gguf") and _part(n) in (None, 1)]
    if not ggufs:
        raise ModelError(f"{repo} holds no GGUF files; `atp-cpp convert {repo}` makes them")
    projectors = [name for name in ggufs if _base(name).startswith("mmproj")]
    sidecars = [name for name in ggufs if _is_sidecar(name, ggufs)]
    others = [name for name in ggufs if name not in projectors and name not in sidecars]

    def several(what: str, argument: str, found: Sequence[str]) -> ModelError:
        listed = ", ".join(found[:12]) + (f" and {len(found) - 12} more" * (len(found) > 12))
        return ModelError(
            f"{repo}: {what} could be any of {len(found)}: {listed}; name one with {argument}="
        )

    models = _matching(repo, others, filename, ggufs, "filename")
    if filename is None and len(models) > 1:
        models = next((fit for kind in usual if (fit := _like(models, f"*{kind}.gguf"))), models)
    if len(models) != 1:
        raise several("the text model", "filename", models)
    seen = _matching(repo, projectors, mmproj, ggufs, "mmproj")
    if len(seen) > 1:
        seen = [name for name in seen if _F16.search(_base(name))] or seen
    if len(seen) != 1:
        raise several("the vision projector", "mmproj", seen)
    sidecars = [name for name in sidecars if name not in models]
    pruners = _matching(repo, sidecars, atp, ggufs, "atp") if sidecars or atp else []
    if len(pruners) > 1:
        raise several("the sidecar", "atp", pruners)
    sidecar = pruners[0] if pruners else ""
    return Choice(models[0], seen[0], sidecar, _other_parts(repo, models[0], names))


def _base(name: str) -> str:
    return PurePosixPath(name).name.lower()


def _is_sidecar(name: str, ggufs: Sequence[str]) -> bool:
    """Whether a file atp-*.gguf is a sidecar; a file with a sidecar atp-atp-* is itself a model."""
    stem = _PART.sub("", _base(name)).removesuffix(".gguf")
    return stem.startswith("atp-") and not any(_base(g).startswith(f"atp-{stem}") for g in ggufs)


def _part(name: str) -> int | None:
    """The number of the part, counted from 1, that a file is; None for a whole file."""
    found = _PART.search(name)
    return int(found[1]) if found else None


def _other_parts(repo: str, first: str, names: Sequence[str]) -> tuple[str, ...]:
    found = _PART.search(first)
    if not found:
        return ()
    stem, total = first[: found.start()], int(found[2])
    parts = [f"{stem}-{k:05}-of-{total:05}.gguf" for k in range(2, total + 1)]
    if missing := [part for part in parts if part not in names]:
        raise ModelError(
            f"{repo}: {first} is one of {total} parts, but there is no {', '.join(missing)}"
        )
    return tuple(parts)


def _like(names: Sequence[str], pattern: str) -> list[str]:
    """The names that fit a pattern, with or without their folder; exact capitals come first."""

    def forms(name: str) -> set[str]:
        last = PurePosixPath(name).name
        return {name, last, _PART.sub(".gguf", name), _PART.sub(".gguf", last)}

    for case in (str, str.lower):
        found = [n for n in names if any(fnmatchcase(case(f), case(pattern)) for f in forms(n))]
        if found:
            return found
    return []


def _matching(
    repo: str, candidates: Sequence[str], pattern: str | None, ggufs: Sequence[str], argument: str
) -> list[str]:
    """The candidates; with the user's name or pattern, the files that it fits."""
    if pattern is None:
        found, wanted = list(candidates), {"filename": "text model", "mmproj": "mmproj*.gguf"}
        missing = f"no {wanted.get(argument, 'atp-*.gguf')}"
    else:
        found = _like(candidates, pattern) or _like(ggufs, pattern)
        missing = f"no file that fits {argument}={pattern!r}"
    if not found:
        raise ModelError(f"{repo} has {missing}; its GGUF files are {', '.join(ggufs[:12])}")
    return found


@contextmanager
def _named_failures(repo: str, revision: str | None, offline: bool) -> Iterator[None]:
    """Turns failures of the hub into a ModelError of one line: what happened, and what to do."""
    from huggingface_hub import constants, errors

    from atp_cpp.hub.client import is_unreachable, quiet

    at = f" at revision {revision}" if revision else ""
    login = "log in with an account that may read it (hf auth login, HF_TOKEN, or token=)"
    try:
        with quiet():
            yield
    except ModelError:
        raise
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repo} is gated; accept its terms at {constants.ENDPOINT}/{repo}, then {login}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{repo}: no such repository at {constants.ENDPOINT}, or it is private; check the "
            f"name, or {login}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"{repo} has no revision {revision}; name a branch, tag or commit"
        ) from error
    except errors.HFValidationError as error:
        raise ModelError(f"{repo}: expected a repository as org/name: {error}") from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelError(
            f"{repo}{at}: not all of its files are in the cache, and "
            + ("the hub is not asked" if offline else f"{constants.ENDPOINT} cannot be reached")
            + "; run it once online"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        advice = login if status in (401, 403) else "try again later"
        raise ModelError(f"{repo}: {constants.ENDPOINT} answered {status}; {advice}") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if is_unreachable(error):
            raise ModelError(
                f"{repo}: {constants.ENDPOINT} cannot be reached ({reason}); check the network, or "
                "take what is in the cache with local_files_only=True (HF_HUB_OFFLINE=1)"
            ) from error
        if isinstance(error, OSError):
            raise ModelError(f"{repo}: cannot be downloaded: {reason}") from error
        raise
