"""The folder that training leaves (atp.json, atp.npz) into a sidecar GGUF file."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from atp_cpp.errors import ModelError
from atp_cpp.sidecar.sidecar import AtpSidecar


@dataclass(frozen=True, slots=True)
class Conversion:
    """The file that a conversion wrote, or that it would write in a dry run.

    Attributes:
        path: the GGUF file.
        size_bytes: size of the file.
        sidecar: the content of the file.
    """

    path: Path
    size_bytes: int
    sidecar: AtpSidecar


def convert_atp(
    folder: str | os.PathLike[str],
    outfile: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    dry_run: bool = False,
) -> Conversion:
    """Writes the sidecar of a trained folder; a file appears under its name only when complete.

    Args:
        folder: holds atp.json and atp.npz.
        outfile: the file to write, or a folder for it; without it, the folder itself. In a folder
            the file is called atp-<base model>-f32.gguf.
        force: replace a file that is there.
        dry_run: do everything but leave no file.

    Raises:
        ModelError: the folder holds no valid sidecar, the file is there already, it cannot be
            written, or the gguf package is missing.
    """
    sidecar = AtpSidecar.load_dir(folder)
    target = Path(folder if outfile is None else outfile)
    if target.is_dir():
        target /= sidecar.file_name
    for name in ("atp.json", "atp.npz"):
        if target.exists() and target.resolve() == (Path(folder) / name).resolve():
            raise ModelError(f"{target} is what the sidecar is made of; name another file")
    if target.exists() and not force:
        raise ModelError(f"{target} is there already; name another file or replace it with --force")
    if dry_run:
        with tempfile.TemporaryDirectory() as elsewhere:
            size = sidecar.write_gguf(Path(elsewhere) / target.name).stat().st_size
    else:
        size = sidecar.write_gguf(target).stat().st_size
    return Conversion(target, size, sidecar)
