"""The files a captioner loads, the user's or the demo model's, checked before a model is loaded."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from atp_cpp.errors import ModelError
from atp_cpp.images.spec import ImageSpec
from atp_cpp.models.gguf_header import read_header
from atp_cpp.models.pairing import why_no_pair
from atp_cpp.models.projector import check_projector

DEMO_DIR = Path(__file__).parents[1] / "demo"
DEMO_MODEL = "atp-demo.gguf"
DEMO_MMPROJ = "mmproj-atp-demo.gguf"
DEMO_ATP = "atp-atp-demo-f32.gguf"
_NEWLINES = {"v.image_newline", "model.image_newline"}  # the second in older files

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of one model.

    Attributes:
        model: GGUF of the text model.
        mmproj: GGUF of the vision projector.
        atp: GGUF of the ATP sidecar; None without a sidecar.
    """

    model: Path
    mmproj: Path
    atp: Path | None = None

    @classmethod
    def chosen(
        cls,
        model: str | os.PathLike[str] | None,
        mmproj: str | os.PathLike[str] | None,
        atp: str | os.PathLike[str] | None = None,
    ) -> ModelFiles:
        """The user's files, or those of the demo model; see model_files and atp_file.

        Raises:
            ModelError: see model_files and atp_file.
        """
        return cls(*model_files(model, mmproj), atp_file(model, atp))


def model_files(
    model: str | os.PathLike[str] | None, mmproj: str | os.PathLike[str] | None
) -> tuple[Path, Path]:
    """The two files to load: the user's, or the demo's.

    Raises:
        ModelError: one without the other, a name without a letter, or no demo model in this
            installation.
    """
    for path in (model, mmproj):
        _check_name(path)
    if model is None:
        if mmproj is not None:
            raise ModelError(
                f"{os.fspath(mmproj)}: a vision projector needs its text model; give the model too"
            )
        files = DEMO_DIR / DEMO_MODEL, DEMO_DIR / DEMO_MMPROJ
        for path in files:
            if not path.is_file():
                raise ModelError(
                    f"this installation has no demo model ({path} is missing); "
                    "give a model and its mmproj"
                )
        return files
    if mmproj is None:
        if not os.path.lexists(model):  # report a missing file before any other mistake
            raise ModelError(f"{os.fspath(model)}: no such file; check the path")
        raise ModelError(
            f"{os.fspath(model)}: a text model sees only with its vision projector; "
            "give its mmproj file too"
        )
    return Path(model), Path(mmproj)


def image_spec_of(mmproj: Path) -> ImageSpec | None:
    """How a projector's images are prepared; None if its file leaves that to libmtmd.

    Raises:
        ModelError: the file's keys on the preparation of images are wrong.
    """
    header = read_header(mmproj)
    if header.metadata.get("general.architecture") != "clip":
        return None  # no projector; the engine tells what the file is
    check_projector(header, str(mmproj))
    try:
        spec = ImageSpec.from_metadata(header.metadata)
    except ValueError as error:
        raise ModelError(f"{mmproj}: {error}") from None
    if spec is None:
        return None
    side = header.metadata.get("clip.vision.image_size")
    if side != spec.side:
        raise ModelError(
            f"{mmproj}: its images are prepared as squares of {spec.side} pixels and encoded as "
            f"squares of {side}; convert the model again"
        )
    if spec.pinpoints and not _NEWLINES & header.tensors.keys():
        raise ModelError(
            f"{mmproj}: its images are cut into tiles, and it has no v.image_newline, which ends "
            "their lines; convert the model again"
        )
    return spec


def note_pair(model: Path, mmproj: Path) -> None:
    """Warns if a projector probably belongs to another model; llama.cpp only compares the width."""
    if reason := why_no_pair(model, mmproj):
        _log.warning(
            "%s; if they do not belong together, answers have nothing to do with the image; give "
            "the mmproj file that was made with this text model",
            reason,
        )


def atp_file(
    model: str | os.PathLike[str] | None, atp: str | os.PathLike[str] | None
) -> Path | None:
    """The sidecar to load: the user's, or the demo model's, or none.

    Raises:
        ModelError: a name without a letter.
    """
    _check_name(atp)
    if atp is not None:
        return Path(atp)
    demo = DEMO_DIR / DEMO_ATP
    return demo if model is None and demo.is_file() else None


def _check_name(path: str | os.PathLike[str] | None) -> None:
    """Raises ModelError on an empty text: as a Path it would be the present folder."""
    if path is not None and not os.fspath(path):
        raise ModelError("expected the name of a GGUF file, got an empty text")
