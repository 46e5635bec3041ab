"""A Hugging Face folder -> `Checkpoint`: its config and what its weight files hold, verified.

Only headers are read: no tensor data, no PyTorch. What passes here, the converter can stream
without finding a hole half-way. Which files count as weights follows llama.cpp's converter:
``model*.safetensors`` (those that the index names, if there is one), and only without any of them
``pytorch_model*.bin``, of which nothing but completeness can be seen without PyTorch.
"""

from __future__ import annotations

import json
import logging
import re
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from atp_cpp.convert.family import check_counts, check_origin
from atp_cpp.errors import ConvertError
from atp_cpp.hub.checkpoint_names import SMALL
from atp_cpp.hub.other_weights import (
    is_adapter,
    refuse_additions,
    refuse_two_sets,
    unread,
)

__all__ = ["Checkpoint", "TensorFile", "read_checkpoint", "read_config", "read_json_object"]

CONFIG = "config.json"
EXPECTED = "expected a Hugging Face checkpoint: a folder with config.json and *.safetensors"
_LFS_HEAD = b"version https://git-lfs"
# model-00001-of-00003.safetensors
_PART_OF = re.compile(r"^(?P<stem>.+)-(?P<number>\d+)-of-(?P<total>\d+)(?P<suffix>\.\w+)$")
# bits of one element, by safetensors' names
_BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TensorFile:
    """Where a tensor lies, as its file's header says.

    Attributes:
        dtype: in safetensors' names: F32, F16, BF16, …
        shape: outermost first, as PyTorch has it.
        n_bytes: of its data.
        file: name of its file in the folder.
    """

    dtype: str
    shape: tuple[int, ...]
    n_bytes: int
    file: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        folder: where it lies.
        name: for the output files.
        config: content of config.json.
        tensors: by name; empty for ``pytorch_model*.bin``, whose headers only PyTorch reads.
        files: the weight files' names, in order.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    tensors: dict[str, TensorFile]
    files: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Size of the weights as they are stored; of the whole files where headers are unknown."""
        if self.tensors:
            return sum(tensor.n_bytes for tensor in self.tensors.values())
        return sum((self.folder / file).stat().st_size for file in self.files)


def read_checkpoint(folder: Path, name: str) -> Checkpoint:
    """Reads config.json and the headers of every weight file.

    Args:
        folder: of a Hugging Face checkpoint.
        name: for the output files.

    Raises:
        ConvertError: it is no such folder, a file is missing, cut off or damaged, the index and
            the files disagree, something cannot be read, or the safetensors package is missing.
    """
    try:
        names = _file_names(folder)
        config = _read_config(folder, names)
        _refuse_lfs_pointers(folder, [name for name in names if _is_small(name)])
        files, index = _weight_files(folder, names)
        refuse_additions(str(folder), names, original="mm_vision_tower" in config)
        _note_unread(folder, names, files)
        _refuse_lfs_pointers(folder, files)
        check_origin(config, _formats(folder, files))
        if files[0].endswith(".safetensors"):
            tensors = _read_headers(folder, files)
            if index is not None:
                _compare(folder, index, tensors)
        else:
            tensors = {}
            for file in files:
                _check_torch_zip(folder / file)
    except OSError as error:
        where = error.filename or folder
        raise ConvertError(f"{where}: cannot be read: {error.strerror or error}") from error
    return Checkpoint(folder, name, config, tensors, tuple(files))


def read_config(folder: Path) -> dict[str, Any]:
    """What is in config.json; the weights need not be there.

    Raises:
        ConvertError: there is none, or it is not of a model.
    """
    return _read_config(folder, _file_names(folder))


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ConvertError: it holds something else.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{path}: not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ConvertError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _file_names(folder: Path) -> list[str]:
    """Names in the folder, sorted; refuses what is no folder."""
    if folder.is_file():
        if folder.suffix == ".gguf":
            raise ConvertError(f"{folder} is a GGUF file already; {EXPECTED}")
        raise ConvertError(f"{folder} is a file; {EXPECTED}; name the folder that it lies in")
    if not folder.exists():
        raise ConvertError(f"{folder}: no such folder; {EXPECTED}")
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        raise ConvertError(f"{folder} is empty; {EXPECTED}")
    return names


def _read_config(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    if CONFIG in names:
        _refuse_lfs_pointers(folder, [CONFIG])
        config = read_json_object(folder / CONFIG)
        check_counts(config)
        return config
    if any(is_adapter(name) for name in names):
        hint = "it is an adapter (PEFT); merge it into its base model and convert that"
    elif any(name.endswith(".gguf") for name in names):
        hint = "it holds GGUF files, which need no conversion"
    elif any((folder / name / CONFIG).is_file() for name in names):
        inner = next(name for name in names if (folder / name / CONFIG).is_file())
        hint = f"its folder {inner} has one; name that"
    else:
        hint = EXPECTED
    raise ConvertError(f"{folder} has no {CONFIG}; {hint}")


def _is_small(name: str) -> bool:
    """Whether the converter may read a file that is no weights; an index only with its weights."""
    hidden = name.startswith(".") or name.endswith(".index.json")
    return not hidden and any(fnmatch(name, pattern) for pattern in SMALL)


def _refuse_lfs_pointers(folder: Path, names: Sequence[str]) -> None:
    """A clone without Git LFS leaves small text files in the place of large ones."""
    for name in names:
        path = folder / name
        if path.is_symlink() and not path.exists():
            raise ConvertError(f"{path} is a link to a file that is not there; download it again")
        if path.is_file() and path.stat().st_size < 1024:
            with path.open("rb") as stream:
                if stream.read(len(_LFS_HEAD)) == _LFS_HEAD:
                    raise ConvertError(
                        f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` "
                        f"in {folder}"
                    )


def _weight_files(folder: Path, names: Sequence[str]) -> tuple[list[str], dict[str, str] | None]:
    """Names of the weight files, all there, and the index (tensor -> file) if there is one."""
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        index_name = f"{stem}{suffix}.index.json"
        files = [name for name in names if name.startswith(stem) and name.endswith(suffix)]
        index = None
        if index_name in names:
            _refuse_lfs_pointers(folder, [index_name])
            index = _read_index(folder / index_name)
        if index is not None:
            files, source = sorted(set(index.values())), f" that {index_name} names"
        else:
            files, source = _with_missing_parts(files), ""
        missing = [file for file in files if file not in names]
        if missing:
            raise ConvertError(
                f"{folder}: missing {', '.join(missing[:3])}{' …' if missing[3:] else ''} "
                f"({len(missing)} of {len(files)} weight files{source}); download it again"
            )
        if index is not None:
            refuse_two_sets(str(folder), names, files, index_name)
        if files:
            return files, index
    others = [name for name in names if name.endswith((".safetensors", ".bin", ".pth", ".pt"))]
    found = f"; found {', '.join(others[:3])}{' …' if others[3:] else ''}" if others else ""
    raise ConvertError(
        f"{folder} has no weights; expected model*.safetensors or pytorch_model*.bin{found}"
    )


def _note_unread(folder: Path, names: Sequence[str], files: Sequence[str]) -> None:
    """Says which weights stay out, here and in a folder below."""
    if others := unread(names, files):
        listed = ", ".join(others[:3]) + (" …" if others[3:] else "")
        _log.warning("%s: not read: %s; the weights are %s", folder, listed, _range(files))
    inner = [name for name in names if (folder / name).is_dir()]
    if adapters := [n for n in inner if (folder / n / "adapter_config.json").is_file()]:
        _log.warning(
            "%s: the adapter in its folder %s is not part of what is converted", folder, adapters[0]
        )


def _range(files: Sequence[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} … {files[-1]}"


def _with_missing_parts(files: Sequence[str]) -> list[str]:
    """The files, and those that "-00001-of-00003" in a name says there must be."""
    wanted = set(files)
    for file in files:
        if found := _PART_OF.match(file):
            width, total = len(found["number"]), int(found["total"])
            if total > 10_000:  # no checkpoint; a name that happens to look like a part's
                continue
            for number in range(1, total + 1):
                part = f"{number:0{width}d}-of-{found['total']}"
                wanted.add(f"{found['stem']}-{part}{found['suffix']}")
    return sorted(wanted)


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConvertError(f"{path}: expected weight_map, from tensors to files")
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not file or Path(file).name != file:
            raise ConvertError(f"{path}: {tensor} is in {file!r}; expected a file in the folder")
    return weight_map


def _read_headers(folder: Path, files: Sequence[str]) -> dict[str, TensorFile]:
    safe_open, broken = _safetensors()
    tensors: dict[str, TensorFile] = {}
    for file in files:
        path = folder / file
        _check_length(path)
        try:
            with safe_open(path, framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118
                    if name in tensors:
                        raise ConvertError(
                            f"{folder}: {name} is in {tensors[name].file} and in {file}; keep the "
                            "files of one checkpoint only"
                        )
                    part = opened.get_slice(name)
                    tensors[name] = _tensor_file(part.get_dtype(), part.get_shape(), file)
        except broken as error:
            reason = str(error).removeprefix("Error while deserializing header: ")
            raise ConvertError(f"{path} is damaged ({reason}); download it again") from error
    if not tensors:
        raise ConvertError(f"{folder}: no tensor in {', '.join(files)}; download it again")
    return tensors


def _formats(folder: Path, files: Sequence[str]) -> set[str]:
    """What safetensors files say of their format; damaged ones are named later."""
    formats = set()
    for file in files:
        with (folder / file).open("rb") as stream, suppress(ValueError, AttributeError):
            n_header = int.from_bytes(stream.read(8), "little")
            if file.endswith(".safetensors") and n_header < 100_000_000:
                head = json.loads(stream.read(n_header)).get("__metadata__") or {}
                formats.add(str(head.get("format", "")))
    return formats


def _safetensors() -> tuple[Callable[..., Any], type[Exception]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ConvertError(
            "reading a checkpoint needs the safetensors package, which is not installed; "
            'pip install "atp_cpp[convert]"'
        ) from error
    return safe_open, SafetensorError


def _tensor_file(dtype: str, shape: Sequence[int], file: str) -> TensorFile:
    # all other names end in their bits: F32, BF16, I64; or begin with them: F8_E4M3
    bits = _BITS.get(dtype) or int("".join(c for c in dtype.split("_")[0] if c.isdigit()))
    n_bits = bits
    for size in shape:
        n_bits *= size
    return TensorFile(dtype, tuple(shape), n_bits // 8, file)


def _check_length(path: Path) -> None:
    """Says what is missing where a download broke off; the library's words are the same for all.

    Layout: uint64 little endian n, n bytes of JSON, the data that its offsets speak of.
    """
    size = path.stat().st_size
    if size == 0:
        raise ConvertError(f"{path} is empty (0 bytes); download it again")
    with path.open("rb") as stream:
        n_header = int.from_bytes(stream.read(8), "little")
        if size < 8 or n_header > 100_000_000:  # the format's own limit
            raise ConvertError(f"{path} is no safetensors file; download it again")
        needed = 8 + n_header
        if needed <= size:
            try:
                header = json.loads(stream.read(n_header))
                ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
                needed += max(ends, default=0)
            except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
                return  # safetensors says what is wrong with it
    if size < needed:
        raise ConvertError(
            f"{path} is cut off: expected {needed} bytes, got {size}; download it again"
        )


def _check_torch_zip(path: Path) -> None:
    """A PyTorch file is a ZIP archive, whose directory is at its end: a cut-off one has none."""
    if path.stat().st_size == 0:
        raise ConvertError(f"{path} is empty (0 bytes); download it again")
    if not zipfile.is_zipfile(path):
        raise ConvertError(
            f"{path} is cut off, or no file of PyTorch 1.6 or newer; download it again, or save "
            "the checkpoint as safetensors"
        )


def _compare(folder: Path, index: dict[str, str], tensors: dict[str, TensorFile]) -> None:
    for name, file in index.items():
        if name not in tensors:
            problem = f"{name} is not in {file}, where the index has it"
        elif tensors[name].file != file:
            problem = f"{name} is in {tensors[name].file}, the index has it in {file}"
        else:
            continue
        raise ConvertError(f"{folder}: {problem}; download the checkpoint again")
    extra = sorted(tensors.keys() - index.keys())
    if extra:
        raise ConvertError(
            f"{folder}: {extra[0]} is in {tensors[extra[0]].file}, but not in the index; download "
            "the checkpoint again"
        )
