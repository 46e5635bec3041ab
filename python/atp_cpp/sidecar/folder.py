"""A sidecar as a folder, atp.json and atp.npz: what training writes."""

from __future__ import annotations

import json
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from atp_cpp.errors import ModelError
from atp_cpp.sidecar.schema import VERSION, Floats, SidecarFields
from atp_cpp.storage.atomic import replacing

JSON_NAME = "atp.json"
NPZ_NAME = "atp.npz"


def write_folder(sidecar: SidecarFields, target: Path) -> None:
    """Writes a valid sidecar; the folder is made if need be.

    A sidecar that is there is replaced once both files of the new one are complete.

    Raises:
        ModelError: the folder cannot be written.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"version": VERSION, **sidecar.metadata()}, indent=2)
        with replacing(target / NPZ_NAME) as npz, replacing(target / JSON_NAME) as facts:
            with npz.open("wb") as stream:
                np.savez(stream, **sidecar.tensors)  # type: ignore[arg-type]
            facts.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{target}: cannot be written: {error.strerror or error}") from error


def read_folder(source: Path) -> dict[str, Any]:
    """Field name -> value, as the folder has them; none is checked but the version.

    Raises:
        ModelError: a file is missing or damaged, or a field is unknown or missing.
    """
    values = _read_json(source / JSON_NAME)
    version = values.pop("version", None)
    if version != VERSION:
        raise ModelError(f"{source / JSON_NAME}: version must be {VERSION}, got {version!r}")
    known = {f.name for f in fields(SidecarFields)} - {"tensors"}
    for problem, names in (("lacks", known - values.keys()), ("has", values.keys() - known)):
        if names:
            unknown = " which nobody knows" if problem == "has" else ""
            raise ModelError(
                f"{source / JSON_NAME} {problem} {', '.join(sorted(names))}{unknown}; "
                "train again with this version"
            )
    values["tensors"] = _read_npz(source / NPZ_NAME)
    return values


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
