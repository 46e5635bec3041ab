"""The sidecar: trained ATP modules of one model, in memory, in a folder and in a GGUF file.

``docs/design/sidecar.md`` is the schema. A folder (``atp.json`` + ``atp.npz``) is what training
writes, the GGUF file is what the engine loads. Knows no PyTorch and does not run anything.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from atp_cpp.sidecar import gguf as sidecar_gguf
from atp_cpp.sidecar.fingerprint import fingerprint_from_arrays, fingerprint_from_gguf
from atp_cpp.sidecar.folder import JSON_NAME, NPZ_NAME, read_folder, write_folder
from atp_cpp.sidecar.rules import check_sidecar, tensor_shapes
from atp_cpp.sidecar.schema import SidecarFields

__all__ = [
    "JSON_NAME",
    "NPZ_NAME",
    "AtpSidecar",
    "fingerprint_from_arrays",
    "fingerprint_from_gguf",
    "tensor_shapes",
]


@dataclass(frozen=True, slots=True, eq=False)
class AtpSidecar(SidecarFields):
    """Trained ATP modules with everything needed to run them and to know their model again.

    The fields are those of :class:`~atp_cpp.sidecar.schema.SidecarFields`.
    """

    def validate(self, source: str = "sidecar") -> None:
        """Checks every field and tensor against docs/design/sidecar.md.

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
        write_folder(self, target)
        return target

    @staticmethod
    def load_dir(folder: str | os.PathLike[str]) -> AtpSidecar:
        """Reads what save_dir wrote.

        Raises:
            ModelError: a file is missing or damaged, or the sidecar is not valid.
        """
        sidecar = AtpSidecar(**read_folder(Path(folder)))
        sidecar.validate(str(folder))
        return sidecar

    @staticmethod
    def read_gguf(path: str | os.PathLike[str]) -> AtpSidecar:
        """Reads a GGUF file as the engine does.

        Raises:
            ModelError: not a sidecar, damaged, or against a rule of docs/design/sidecar.md.
        """
        return AtpSidecar(**sidecar_gguf.read(path))

    def write_gguf(self, path: str | os.PathLike[str]) -> Path:
        """Writes the GGUF file, through a temporary file beside it that is renamed.

        Raises:
            ModelError: the sidecar is not valid, the gguf package is missing, or the file cannot
                be written.
        """
        self.validate()
        return sidecar_gguf.write(self, Path(path))
