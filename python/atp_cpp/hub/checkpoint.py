"""Repositories of the Hugging Face hub: which files a conversion needs, and how they get here.

Large files are downloaded one after the other, into the hub's own cache, by a partial file that
survives whatever ends the run; the next run goes on where it ended. (huggingface_hub itself goes
on after a broken connection, but throws its partial file away when the process ends.)
Everything imports huggingface_hub, so nothing imports this module before it is needed.
"""

from __future__ import annotations

import atexit
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import (
    HfApi,
    get_hf_file_metadata,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils.tqdm import tqdm

from atp_cpp.errors import ConvertError
from atp_cpp.hub import client
from atp_cpp.hub.checkpoint_names import SMALL
from atp_cpp.hub.other_weights import is_adapter, refuse_additions
from atp_cpp.storage.digest import file_sha256
from atp_cpp.storage.locks import take_lock
from atp_cpp.storage.readable import readable_size

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # the second only without the first
API_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        name: name of the file in the repository.
        n_bytes: size of the file.
        sha256: SHA-256 of the content of a file under Git LFS; "" for other files.
    """

    name: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Repository:
    """The files of a repository that a conversion needs.

    Attributes:
        repo: "org/name".
        revision: the revision that the user named; None for the main branch.
        commit: the commit that the revision means now.
        small: the files that are no weights.
        weights: the safetensors files; PyTorch's own files where there are no safetensors.
    """

    repo: str
    revision: str | None
    commit: str
    small: tuple[RemoteFile, ...]
    weights: tuple[RemoteFile, ...]

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        """All files: the small files and the weights."""
        return self.small + self.weights


def read_listing(repo: str, revision: str | None) -> Repository:
    """Asks the hub what is in a repository, and chooses.

    Raises:
        ConvertError: it holds no checkpoint, or trained parts beside one.
        Exception: what huggingface_hub and its HTTP client raise.
    """
    info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=API_TIMEOUT_S)
    files = [
        RemoteFile(f.rfilename, f.size or 0, f.lfs.sha256 if f.lfs else "")
        for f in info.siblings or []
    ]
    names = [file.name for file in files]
    if "config.json" not in names:
        if any(is_adapter(name) for name in names):
            hint = "it is an adapter (PEFT); merge it into its base model and convert that"
        elif any(name.endswith(".gguf") for name in names):
            hint = "it holds GGUF files, which need no conversion"
        else:
            hint = "expected a transformers checkpoint with config.json and *.safetensors"
        raise ConvertError(f"{repo} has no config.json; {hint}")
    here = [file for file in files if "/" not in file.name]
    refuse_additions(repo, [file.name for file in here], original=True)
    small = [f for f in here if any(fnmatch(f.name, pattern) for pattern in SMALL)]
    small += [f for f in files if fnmatch(f.name, "additional_chat_templates/*.jinja")]
    chosen = (tuple(f for f in here if fnmatch(f.name, pattern)) for pattern in WEIGHTS)
    weights = next((found for found in chosen if found), ())
    if not weights:
        raise ConvertError(f"{repo} has no weights; expected {' or '.join(WEIGHTS)}")
    assert info.sha is not None
    return Repository(repo, revision, info.sha, tuple(small), weights)


def missing_files(repository: Repository) -> list[RemoteFile]:
    """Files that are not in the cache's snapshot of this commit."""
    return [
        file
        for file in repository.files
        if not isinstance(
            try_to_load_from_cache(repository.repo, file.name, revision=repository.commit), str
        )
    ]


def listed(files: Sequence[RemoteFile]) -> str:
    """Names and sizes for the user, and where they go."""
    sizes = ", ".join(f"{file.name} ({readable_size(file.n_bytes)})" for file in files)
    total = readable_size(sum(file.n_bytes for file in files))
    return f"{sizes}, together {total}, to {client.cache_folder()}"


def download(repository: Repository, missing: Sequence[RemoteFile]) -> Path:
    """The repository's snapshot in the cache; what is missing is downloaded.

    Raises:
        ConvertError: a file did not arrive as it was sent.
        Exception: what huggingface_hub and its HTTP client raise.
    """
    for file in missing:
        if file.sha256:
            _download_blob(repository, file)
    return _snapshot(repository, repository.files)


def has_headers(repository: Repository) -> bool:
    """Whether the weights can be described without being downloaded: safetensors can."""
    return all(file.name.endswith(".safetensors") for file in repository.weights)


def small_only(repository: Repository) -> Path:
    """A temporary folder with all but the weights; it lasts as long as that of `headers_only`.

    Raises:
        Exception: what huggingface_hub and its HTTP client raise.
    """
    folder = Path(tempfile.mkdtemp(prefix="atp-cpp-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _snapshot(repository, repository.small, local_dir=folder)
    return folder


def headers_only(repository: Repository) -> Path:
    """A temporary folder with all but the weights' data.

    Its weight files have the header and the size of the true ones, and a hole for the data. It
    lasts as long as the process, if nobody removes it.

    Raises:
        ConvertError: the weights are PyTorch's own, whose headers cannot be had alone.
        Exception: what huggingface_hub and its HTTP client raise.
    """
    if not has_headers(repository):
        raise ConvertError(
            f"{repository.repo}: what {repository.weights[0].name} holds is not known before it "
            "is downloaded; convert without --dry-run"
        )
    folder = small_only(repository)
    for file in repository.weights:
        metadata = HfApi().parse_safetensors_file_metadata(
            repository.repo, file.name, revision=repository.commit
        )
        _write_hollow(folder / file.name, metadata.tensors)
    return folder


def check_space(repository: Repository, missing: Sequence[RemoteFile]) -> None:
    """Compares what is still to be downloaded with what is free.

    Raises:
        ConvertError: there is not enough free space.
    """
    blobs = _blobs(repository)
    needed = 0
    for file in missing:
        if not (file.sha256 and (blobs / file.sha256).exists()):
            partial = _partial(blobs, file)
            n_here = partial.stat().st_size if file.sha256 and partial.exists() else 0
            needed += max(file.n_bytes - n_here, 0)
    folder = next(f for f in (blobs, *blobs.parents) if f.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConvertError(
            f"{client.cache_folder()}: not enough space to download {repository.repo}: expected "
            f"{readable_size(needed)}, got {readable_size(free)} free; free some, or name another "
            "place with HF_HUB_CACHE"
        )


def cached_folder(repo: str, revision: str | None) -> Path:
    """The snapshot in the cache, without asking the hub.

    Raises:
        LocalEntryNotFoundError: it is not there.
    """
    return Path(
        snapshot_download(
            repo, revision=revision, local_files_only=True, allow_patterns=["config.json"]
        )
    )


def has_partial(repo: str) -> bool:
    """Whether the cache holds some files of a repository, or a part of a file."""
    folder = client.cache_folder() / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    return folder.is_dir() and any(path.stat().st_size for path in folder.iterdir())


_BAR: Any = tqdm


def _hidden(bar: Any, *arguments: Any, **options: Any) -> None:
    _BAR.__init__(bar, *arguments, **{**options, "disable": True})


# huggingface_hub's bar over all files, which it would draw even into a file; never shown
_NO_BAR: Any = type("NoBar", (_BAR,), {"__init__": _hidden})


def _blobs(repository: Repository) -> Path:
    """Where the cache keeps files under their hash."""
    folder = repo_folder_name(repo_id=repository.repo, repo_type="model")
    return client.cache_folder() / folder / "blobs"


def _partial(blobs: Path, file: RemoteFile) -> Path:
    return blobs / f"{file.sha256}.incomplete"


def _download_blob(repository: Repository, file: RemoteFile) -> None:
    """Downloads a file into the cache, from where an earlier run stopped; waits for another run."""
    blobs = _blobs(repository)
    blobs.mkdir(parents=True, exist_ok=True)
    blob, partial = blobs / file.sha256, _partial(blobs, file)
    while not blob.exists():
        with partial.open("ab") as stream:
            take_lock(stream.fileno(), wait=True)
            if not _is_same(stream.fileno(), partial):
                continue  # the other run finished the file, or deleted it
            _download_rest(repository, file, stream)
            stream.flush()
            if file_sha256(partial) != file.sha256:
                partial.unlink()
                raise ConvertError(
                    f"{repository.repo}: {file.name} arrived damaged and was removed; run again"
                )
            os.replace(partial, blob)


def _download_rest(repository: Repository, file: RemoteFile, stream: Any) -> None:
    if stream.tell() > file.n_bytes:
        stream.truncate(0)
        stream.seek(0)
    if stream.tell() == file.n_bytes:
        return
    url = hf_hub_url(repository.repo, file.name, revision=repository.commit)
    location = get_hf_file_metadata(url).location
    headers = {"user-agent": "atp_cpp"}
    token = client.token()
    # the file store behind the hub must not see the token: its addresses already carry permission
    if token is not None and urlsplit(location).netloc == urlsplit(url).netloc:
        headers["authorization"] = f"Bearer {token}"
    while True:
        n_before = stream.tell()
        try:
            http_get(
                location,
                stream,
                resume_size=n_before,
                headers=headers,
                expected_size=file.n_bytes,
                displayed_filename=file.name,
            )
            return
        except Exception as error:
            if not client.is_unreachable(error) or stream.tell() <= n_before:
                raise  # if some bytes came, try again


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _snapshot(
    repository: Repository, files: Sequence[RemoteFile], *, local_dir: Path | None = None
) -> Path:
    """The files by huggingface_hub: small ones are downloaded, blobs that are there are linked."""
    folder = Path(
        snapshot_download(
            repository.repo,
            revision=repository.revision,
            allow_patterns=[glob.escape(file.name) for file in files],
            local_dir=local_dir,
            tqdm_class=_NO_BAR,
        )
    )
    if local_dir is None and folder.name != repository.commit:
        raise ConvertError(f"{repository.repo} was changed while it was downloaded; run again")
    return folder


def _write_hollow(path: Path, tensors: dict[str, Any]) -> None:
    """A safetensors file with its header, and a hole for the data."""
    header = {
        name: {"dtype": t.dtype, "shape": t.shape, "data_offsets": t.data_offsets}
        for name, t in tensors.items()
    }
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        end = max((t.data_offsets[1] for t in tensors.values()), default=0)
        stream.truncate(8 + len(text) + end)
