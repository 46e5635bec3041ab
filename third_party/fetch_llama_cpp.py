"""Put the pinned llama.cpp source, with our patches, into the user's cache and print where it is.

CMake calls this when it configures; by hand: ``python third_party/fetch_llama_cpp.py``. The source
is the copy of llama.cpp inside the llama-cpp-python sdist, downloaded with this Python's pip,
checked by SHA-256, unpacked in part and patched in a temporary folder, and moved into place with
one rename. So a folder that exists is complete. Its name holds a hash of all that went into it:
another pin or another patch is another folder. stdout carries the path alone, everything else goes
to stderr.

``fetch_llama_cpp.py FILE TARGET`` copies one more file of the same archive, unpatched: tests
compile one that no build needs.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

PATCHES = Path(__file__).resolve().parent / "patches"
INSTEAD = (
    "To build from a llama.cpp tree of your own instead, pass "
    "-DATP_LLAMA_CPP_DIR=DIR to CMake (pip: --config-settings=cmake.define.ATP_LLAMA_CPP_DIR=DIR)."
)


class FetchError(Exception):
    """The source could not be had; the message says why and what to do."""


@dataclass(frozen=True)
class Pin:
    """One exact archive, and the part of it that is built."""

    package: str
    version: str
    sha256: str
    root: str  # the folder of the archive that becomes the source tree
    wanted: tuple[str, ...]  # files and folders below root; the rest (150 MB) stays packed


PIN = Pin(
    package="llama-cpp-python",
    version="0.3.36",  # llama.cpp 0c1e57098
    sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    root="llama_cpp_python-0.3.36/vendor/llama.cpp",
    wanted=(
        "CMakeLists.txt",
        "LICENSE",
        "cmake",
        "common/common.h",
        "common/json*",
        "common/trie.*",
        "common/unicode.*",
        "conversion",
        "ggml",
        "gguf-py/gguf",
        "include",
        "licenses",
        "src",
        "tools/mtmd/CMakeLists.txt",
        "tools/mtmd/*.cpp",
        "tools/mtmd/*.h",
        "tools/mtmd/debug",
        "tools/mtmd/models",
        "tools/rpc",
        "vendor",
    ),
)


def log(message: str) -> None:
    """Say something on stderr; stdout belongs to the path."""
    print(f"fetch_llama_cpp: {message}", file=sys.stderr, flush=True)


def cache_dir() -> Path:
    """The per-user cache folder: ATP_CPP_CACHE, else the platform's own place."""
    if chosen := os.environ.get("ATP_CPP_CACHE"):
        return Path(chosen).expanduser().resolve()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "atp_cpp"


def patch_files(folder: Path) -> list[Path]:
    """The patches, in the order of their numbers."""
    return sorted(folder.glob("*.patch"))


def patch_sections(patch: Path) -> list[str]:
    """File name and hunks, file by file; the words above the first diff are left out.

    Raises:
        FetchError: there is no diff in the file.
    """
    text = patch.read_text("utf-8")
    sections = re.split(r"^--- a/.*\n\+\+\+ b/(.*)\n", text, flags=re.MULTILINE)[1:]
    if not sections:
        raise FetchError(f"{patch.name}: no '--- a/…' and '+++ b/…' lines in this patch")
    return sections


def source_key(pin: Pin, patches: list[Path]) -> str:
    """Sixteen hex digits that change with the archive, the part unpacked and any patch's diff."""
    digest = hashlib.sha256()
    for part in (pin.sha256, pin.root, *pin.wanted):
        digest.update(part.encode() + b"\0")
    for patch in patches:
        digest.update(
            patch.name.encode() + b"\0" + "\0".join(patch_sections(patch)).encode() + b"\0"
        )
    return digest.hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; a second build waits. The system frees it if we die."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # gives up after ten seconds
                    break
                except OSError:
                    log(f"waiting for another build that holds {path}")
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def download(pin: Pin, into: Path) -> Path:
    """Download the archive of ``pin`` with pip into the empty folder ``into``.

    Returns:
        The downloaded file.

    Raises:
        FetchError: pip failed (its last lines are in the message), or left no archive.
    """
    # Without build isolation pip reads the sdist's metadata with the scikit-build-core we run on.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", pin.package, "--dest", str(into), f"{pin.package}=={pin.version}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    archives = sorted(into.glob("*.tar.gz"))
    if done.returncode != 0 or len(archives) != 1:
        tail = "\n".join("    " + line for line in done.stdout.strip().splitlines()[-8:])
        raise FetchError(
            f"pip could not download {pin.package}=={pin.version}:\n{tail}\n"
            f"Is the package index reachable, and is scikit-build-core installed? {INSTEAD}"
        )
    return archives[0]


def verify(pin: Pin, archive: Path) -> None:
    """Raise FetchError unless ``archive`` is the very file that was pinned."""
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != pin.sha256:
        raise FetchError(
            f"{archive.name} is not the pinned file.\n"
            f"    expected SHA-256 {pin.sha256}\n    got              {digest.hexdigest()}\n"
            "The download is damaged or the index serves another file; it was thrown away. Try "
            f"'{sys.executable} -m pip cache purge' and again. {INSTEAD}"
        )


def is_wanted(pin: Pin, path: PurePosixPath) -> bool:
    """Whether the file at ``path`` (below the pin's root) is one to unpack."""
    return any(
        candidate.match(pattern) and len(candidate.parts) == pattern.count("/") + 1
        for pattern in pin.wanted
        for candidate in (path, *path.parents)
    )


def unpack(pin: Pin, archive: Path, into: Path) -> None:
    """Unpack the wanted files of ``archive`` into the folder ``into``.

    Raises:
        FetchError: a member's path leads out of the folder, a wanted member is not a plain file, or
            nothing wanted is in the archive. What was unpacked till then stays for the caller.
    """
    count = 0
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or "\\" in member.name:
                raise FetchError(f"{archive.name}: refused, member {member.name!r} leads outside")
            if not path.is_relative_to(pin.root) or member.isdir():
                continue
            relative = path.relative_to(pin.root)
            if not is_wanted(pin, relative):
                continue
            content = tar.extractfile(member) if member.isreg() else None
            if content is None:
                raise FetchError(f"{archive.name}: refused, {member.name!r} is not a plain file")
            target = into.joinpath(*relative.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file)
            count += 1
    if count == 0:
        raise FetchError(f"{archive.name} holds nothing below {pin.root}. {INSTEAD}")


def patched_text(text: str, hunks: list[str]) -> str:
    """Apply the lines of one file's unified diff to ``text``, without any fuzz.

    Raises:
        ValueError: a line of context or a removed line is not what the file has there.
    """
    old = text.splitlines(keepends=True)
    new: list[str] = []
    at = 0  # lines of old that are done
    for line in hunks:
        if header := re.match(r"@@ -(\d+)", line):
            start = int(header.group(1)) - 1
            new += old[at:start]
            at = start
        elif line.startswith(("-", " ")):
            if at >= len(old) or old[at].rstrip("\r\n") != line[1:]:
                raise ValueError(f"line {at + 1} is not {line[1:]!r}")
            if line.startswith(" "):
                new.append(old[at])
            at += 1
        elif line.startswith("+"):
            new.append(line[1:] + "\n")
    return "".join(new + old[at:])


def apply_patch(patch: Path, tree: Path) -> None:
    """Apply one patch file (unified diff, a/ and b/ prefixes, existing files only) to ``tree``.

    Raises:
        FetchError: the patch names no file, a file that is not there, or does not fit.
    """
    sections = patch_sections(patch)
    for name, body in zip(sections[0::2], sections[1::2], strict=True):
        target = tree / name.strip()
        try:
            text = target.read_bytes().decode("utf-8")
            target.write_bytes(patched_text(text, body.splitlines()).encode("utf-8"))
        except (OSError, ValueError) as error:
            raise FetchError(
                f"{patch.name} does not fit {name.strip()}: {error}. The patches in "
                "third_party/patches belong to the pinned llama.cpp; renew or remove this one when "
                "the pin moves."
            ) from error


def ensure(pin: Pin = PIN, patches: Path | None = PATCHES, cache: Path | None = None) -> Path:
    """Return the patched source tree in the cache, making it first if it is not there.

    Args:
        pin: what to download.
        patches: the folder of ``*.patch`` files; None: the files stay as they are.
        cache: the cache folder; None takes :func:`cache_dir`.

    Returns:
        The folder of the complete source tree.

    Raises:
        FetchError: the download, the checksum, the archive or a patch is at fault. The cache is
            then as it was.
    """
    cache = cache_dir() if cache is None else cache
    files = [] if patches is None else patch_files(patches)
    name = f"llama.cpp-{source_key(pin, files)}"
    tree = cache / name
    if tree.is_dir():
        return tree
    with locked(cache / f"{name}.lock"):
        if tree.is_dir():  # another build made it while we waited
            return tree
        with tempfile.TemporaryDirectory(dir=cache, prefix="tmp-") as temp:
            log(f"downloading {pin.package}=={pin.version} (once, 77 MB), for {tree}")
            downloads = Path(temp) / "download"
            downloads.mkdir()
            archive = download(pin, downloads)
            verify(pin, archive)
            unpacked = Path(temp) / "source"
            unpack(pin, archive, unpacked)
            for patch in files:
                apply_patch(patch, unpacked)
                log(f"applied {patch.name}")
            unpacked.rename(tree)
    return tree


def copy_file(name: str, target: Path, pin: Pin = PIN, cache: Path | None = None) -> None:
    """Copy one file of the archive, which need not be among those unpacked for a build.

    Raises:
        FetchError: as ``ensure`` does, or the archive has no such file.
    """
    tree = ensure(replace(pin, wanted=(name,)), None, cache)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tree / name, target)


def main(argv: list[str]) -> int:
    """Print the source tree's path; exit code 1 and a message on stderr if it cannot be had."""
    try:
        if len(argv) == 2:
            copy_file(argv[0], Path(argv[1]))
        elif argv:
            raise FetchError(f"expected nothing, or FILE TARGET; got {' '.join(argv)}")
        else:
            print(ensure())
    except FetchError as error:
        log(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
