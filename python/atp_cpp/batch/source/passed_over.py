"""Files that a user may take for images but that cannot be opened here, counted for one note."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping

__all__ = ["kind_of", "words_for"]

# kind -> its suffixes, and how to get images out of it
_KINDS: dict[str, tuple[str, str]] = {
    "HEIC photos": (".heic .heif .hif", "pip install pillow-heif opens them"),
    "JPEG XL pictures": (".jxl", "djxl FILE out.png"),
    "AVIF pictures": (".avif", "a newer Pillow opens them"),
    "Photoshop documents": (".psd .psb", "save them as PNG"),
    "camera raw files": (
        ".cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .dng .orf .rw2 .raf .pef .srw .x3f .3fr .erf",
        "dcraw -e FILE takes the preview",
    ),
    "PDF documents": (".pdf", "pdftoppm -png -r 150 FILE page"),
    "vector drawings": (".svg .svgz .eps .ai .wmf .emf", "rsvg-convert FILE -o out.png"),
    "videos": (
        ".mp4 .mov .m4v .mkv .webm .avi .mpg .mpeg .wmv .flv .mts .m2ts .3gp",
        "ffmpeg -i FILE -frames:v 1 frame.png",
    ),
}
_BY_SUFFIX = {s: kind for kind, (suffixes, _) in _KINDS.items() for s in suffixes.split()}


def kind_of(name: str) -> str:
    """The kind of a file that a user may take for an image, such as a video; "" for other files."""
    return _BY_SUFFIX.get(os.path.splitext(name)[1].lower(), "")


def words_for(counts: Mapping[str, int]) -> str:
    """The files that were passed over, by kind, each with how to get images; "" without files."""
    parts = [f"{n:,} {kind} ({_KINDS[kind][1]})" for kind, n in Counter(counts).most_common() if n]
    return "; ".join(parts)
