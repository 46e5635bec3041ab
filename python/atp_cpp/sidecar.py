"""The sidecar: trained ATP modules of one model, in memory, in a folder and in a GGUF file.

``docs/sidecar.md`` is the schema. A folder (``atp.json`` + ``atp.npz``) is what training writes,
the GGUF file is what the engine loads. Knows no PyTorch and does not run anything.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atp_cpp._core import load_sidecar
from atp_cpp.errors import ModelError
from atp_cpp.fingerprint import fingerprint_from_arrays, fingerprint_from_gguf
from atp_cpp.sidecar_check import VERSION, check_sidecar, is_number, tensor_shapes

__all__ = ["AtpSidecar", "fingerprint_from_arrays", "fingerprint_from_gguf", "tensor_shapes"]

JSON_NAME = "atp.json"
NPZ_NAME = "atp.npz"

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class AtpSidecar:
    """Trained ATP modules with everything needed to run them and to know their model again.

    Numbers that the file stores as float32 (lambda_sample, budget, kept) are rounded to float32
    when the object is made, so that what is read back equals what was written.

    Attributes:
        arch: general.architecture of the base model.
        name: of the sidecar.
        base_name: of the base model.
        cuts: layer counts after which the modules sit, ascending, each in 1..n_layer-1.
        n_layer: depth of the base model.
        n_embd: its width.
        n_head: its attention heads.
        fingerprint: of its norms, 64 hex digits (`fingerprint_from_gguf`).
        grid: (rows, columns) of the patch grid in training; any grid runs.
        score_norm: none, relative or minmax.
        divisor: rows_visible or rows_all.
        score: avg, self or cross.
        rule: union, redundant or spatial.
        strides: of the spatial grids, ascending.
        lambda_sample: the spatial score's slope, 3 in ATP-LLaVA as restated.
        n_bins: points each score is resampled to.
        n_hidden: width of the head.
        activation: identity, relu or silu.
        budget: layer-mean fraction of the image tokens it was trained for, in (0, 1].
        mode: thresholds, full or lora: what was trained with the modules.
        data: what it was trained on.
        kept: mean share of the image tokens alive after each cut, never rising.
        tensors: float32 arrays; names and shapes as `tensor_shapes` gives them.
    """

    arch: str
    name: str
    base_name: str
    cuts: tuple[int, ...]
    n_layer: int
    n_embd: int
    n_head: int
    fingerprint: str
    grid: tuple[int, int]
    score_norm: str
    divisor: str
    score: str
    rule: str
    strides: tuple[int, ...]
    lambda_sample: float
    n_bins: int
    n_hidden: int
    activation: str
    budget: float
    mode: str
    data: str
    kept: tuple[float, ...]
    tensors: dict[str, Floats]

    def __post_init__(self) -> None:
        for name in ("cuts", "grid", "strides", "kept"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple, np.ndarray)):
                object.__setattr__(self, name, tuple(map(_plain, value)))
        if isinstance(self.kept, tuple) and all(is_number(share) for share in self.kept):
            object.__setattr__(self, "kept", tuple(map(_float32, self.kept)))
        for name in ("lambda_sample", "budget"):
            value = getattr(self, name)
            if is_number(value):
                object.__setattr__(self, name, _float32(value))

    def __eq__(self, other: object) -> bool:
        """Equal to the bit, tensors included."""
        if not isinstance(other, AtpSidecar):
            return NotImplemented
        return (
            self.metadata() == other.metadata()
            and self.tensors.keys() == other.tensors.keys()
            and all(
                array.shape == other.tensors[name].shape
                and array.tobytes() == other.tensors[name].tobytes()
                for name, array in self.tensors.items()
            )
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def file_name(self) -> str:
        """atp-<base model>-f32.gguf, in characters every file system takes."""
        return f"atp-{re.sub(r'[^A-Za-z0-9._-]+', '-', self.base_name)}-f32.gguf"

    def metadata(self) -> dict[str, Any]:
        """Every field but the tensors."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tensors"}

    def validate(self, source: str = "sidecar") -> None:
        """Checks every field and tensor against docs/sidecar.md.

        Args:
            source: the file's name, for messages.

        Raises:
            ModelError: names the field, what was expected and what came.
        """
        check_sidecar(self, source)

    def save_dir(self, folder: str | os.PathLike[str]) -> Path:
        """Writes atp.json and atp.npz; the folder is made if need be.

        Raises:
            ModelError: the sidecar is not valid, or the folder cannot be written.
        """
        target = Path(folder)
        self.validate()
        try:
            target.mkdir(parents=True, exist_ok=True)
            with (target / NPZ_NAME).open("wb") as stream:
                np.savez(stream, **self.tensors)  # type: ignore[arg-type]
            text = json.dumps({"version": VERSION, **self.metadata()}, indent=2)
            (target / JSON_NAME).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise ModelError(f"{target}: cannot be written: {error.strerror or error}") from error
        return target

    @staticmethod
    def load_dir(folder: str | os.PathLike[str]) -> AtpSidecar:
        """Reads what save_dir wrote.

        Raises:
            ModelError: a file is missing or damaged, or the sidecar is not valid.
        """
        source = Path(folder)
        values = _read_json(source / JSON_NAME)
        version = values.pop("version", None)
        if version != VERSION:
            raise ModelError(f"{source / JSON_NAME}: version must be {VERSION}, got {version!r}")
        known = {f.name for f in fields(AtpSidecar)} - {"tensors"}
        for problem, names in (("lacks", known - values.keys()), ("has", values.keys() - known)):
            if names:
                unknown = " which nobody knows" if problem == "has" else ""
                raise ModelError(
                    f"{source / JSON_NAME} {problem} {', '.join(sorted(names))}{unknown}; "
                    "train again with this version"
                )
        sidecar = AtpSidecar(**values, tensors=_read_npz(source / NPZ_NAME))
        sidecar.validate(str(source))
        return sidecar

    @staticmethod
    def read_gguf(path: str | os.PathLike[str]) -> AtpSidecar:
        """Reads a GGUF file as the engine does.

        Raises:
            ModelError: not a sidecar, damaged, or against a rule of docs/sidecar.md.
        """
        weights = load_sidecar(os.fspath(path))
        values = {
            f.name: getattr(weights, f.name)
            for f in fields(AtpSidecar)
            if f.name not in ("cuts", "tensors")
        }
        tensors: dict[str, Floats] = {}
        for module in weights.modules:
            prefix = f"blk.{module.after - 1}.atp_"
            tensors[prefix + "proj.weight"] = module.proj_w
            tensors[prefix + "proj.bias"] = module.proj_b
            for theta in ("theta_r", "theta_s"):
                weight, bias = getattr(module, theta + "_w"), getattr(module, theta + "_b")
                tensors[f"{prefix}{theta}.weight"] = weight[None, :]
                tensors[f"{prefix}{theta}.bias"] = np.array([bias], np.float32)
        cuts = tuple(module.after for module in weights.modules)
        return AtpSidecar(cuts=cuts, tensors=tensors, **values)

    def write_gguf(self, path: str | os.PathLike[str]) -> Path:
        """Writes the GGUF file, through a temporary file beside it that is renamed.

        Raises:
            ModelError: the sidecar is not valid, the gguf package is missing, or the file cannot
                be written.
        """
        from atp_cpp.sidecar_gguf import write

        self.validate()
        return write(self, Path(path))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; expected a folder with {JSON_NAME}") from None
    except NotADirectoryError:
        raise ModelError(
            f"{path.parent}: expected the folder that training wrote ({JSON_NAME}, {NPZ_NAME}), "
            "got a file"
        ) from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON ({error}); train again") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def _read_npz(path: Path) -> dict[str, Floats]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; expected the tensors in it") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: not a NumPy archive ({error}); train again") from error


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def _float32(value: float) -> float:
    try:
        with np.errstate(over="ignore"):
            return float(np.float32(value))
    except OverflowError:
        return float("inf")
