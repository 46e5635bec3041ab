"""What a file is that Pillow does not open, told by its first bytes."""

from __future__ import annotations

import re

_RAW = "a camera's raw file; develop it into JPEG first (dcraw -e FILE takes its preview)"
_VIDEO = "a video; take a frame first (ffmpeg -i FILE -frames:v 1 frame.png)"
# first bytes -> what the file is, and what to do
_NOT_IMAGES: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "got a PDF document; turn a page into PNG first (pdftoppm -png -r 150 FILE page)"),
    (b"GGUF", "got a GGUF model; models are given with -m and --mmproj"),
    (b"PK\x03\x04", "got a ZIP archive; unpack it first"),
    (b"\x1f\x8b", "got a gzip archive; unpack it first"),
    (b"%!PS", "got a PostScript drawing; turn it into PNG first (gs -sDEVICE=png16m -r150 -o …)"),
    (b"<svg", "got an SVG drawing; turn it into PNG first (rsvg-convert FILE -o out.png)"),
    (
        b"<!DOCTYPE",
        "got an HTML page, perhaps an error page from a download; fetch the image again",
    ),
    (
        b"<!doctype",
        "got an HTML page, perhaps an error page from a download; fetch the image again",
    ),
    (b"<html", "got an HTML page, perhaps an error page from a download; fetch the image again"),
    (b"version https://git-lfs", "got a Git LFS pointer; run `git lfs pull`"),
)
# what Pillow does not open, by the first bytes
_OTHER_PICTURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\x0a", "a JPEG XL picture; turn it into PNG first (djxl FILE out.png)"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture; turn it into PNG first (djxl FILE out.png)"),
    (b"8BPS", "a Photoshop document; save it as PNG"),
    (b"FUJIFILMCCD-RAW", _RAW),
    (b"\0MRM", _RAW),
    (b"FOVb", _RAW),
    (b"IIRO", _RAW),
    (b"IIRS", _RAW),
    (b"IIU\0", _RAW),
    (b"\x1aE\xdf\xa3", _VIDEO),
    (b"\0\0\x01\xba", _VIDEO),
    (b"FLV\x01", _VIDEO),
)
_HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}


def what_it_is(head: bytes) -> str:
    """What a file that is no picture begins like, and what to do: "got a PDF document; …".

    Args:
        head: the first 512 bytes of the file, or all of it.
    """
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"<?xml"):
        return _what_xml_it_is(start)
    for magic, kind in _OTHER_PICTURES:
        if head.startswith(magic):
            return f"got {kind}"
    if head.startswith((b"II*\0", b"MM\0*")) and head[8:10] == b"CR":
        return f"got {_RAW}"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return f"got {_VIDEO}"
    for magic, what in _NOT_IMAGES:
        if start.startswith(magic):
            return what
    if head[4:8] == b"ftyp":
        if head[8:12] in _HEIC_BRANDS:
            return "got a HEIC photo; `pip install pillow-heif` opens these, or save it as JPEG"
        return f"got {_RAW if head[8:12] == b'crx ' else _VIDEO}"
    if head.startswith((b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM")):
        return "got the beginning of one that is cut off or damaged; copy or download it again"
    if _is_text(head):
        return "got a text file; name an image"
    return "got a file of an unknown kind; name an image, or save this one as PNG"


def _what_xml_it_is(start: bytes) -> str:
    root = re.sub(rb"<[?!][^>]*>", b"", start).lstrip()
    if root.startswith(b"<svg"):
        return "got an SVG drawing; turn it into PNG first (rsvg-convert FILE -o out.png)"
    if root.startswith(b"<Error"):
        return "got an error page of a file store (XML); fetch the image again"
    return "got an XML file; name an image"


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", errors="ignore")
    lost = len(head) - len(text.encode())  # up to 3 bytes when the last character is cut
    return lost <= 3 and all(c.isprintable() or c in "\t\r\n\f" for c in text)
