"""What an install puts on the disk, and what the compiled module shows to other libraries."""

import ctypes
import importlib.metadata
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from atp_cpp import _core
from atp_cpp.models.files import DEMO_ATP, DEMO_MMPROJ, DEMO_MODEL

MODULE = Path(_core.__file__)


@pytest.fixture(scope="module")
def installed():
    """Names of the installed files, or skip: PYTHONPATH=python has none."""
    try:
        files = importlib.metadata.distribution("atp_cpp").files
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("atp_cpp runs from its source folder, not from an installed wheel")
    return [PurePosixPath(f.as_posix()) for f in files or []]


def test_wheel_holds_the_package(installed):
    names = {f.as_posix() for f in installed}
    assert {
        "atp_cpp/__init__.py",
        "atp_cpp/_core.pyi",
        "atp_cpp/py.typed",
        *(f"atp_cpp/demo/{name}" for name in (DEMO_MODEL, DEMO_MMPROJ, DEMO_ATP)),
        f"atp_cpp/{MODULE.name}",
    } <= names
    assert any(f.name == "LICENSE" for f in installed)
    assert any(f.name == "NOTICES.md" for f in installed)
    assert any(f.stem == "atp-cpp" and f.parent.name in ("bin", "Scripts") for f in installed)


def test_wheel_holds_no_headers_or_libraries_of_llama_cpp(installed):
    ours = [f for f in installed if "__pycache__" not in f.parts]
    assert {f.parts[0] for f in ours} - {".."} == {
        "atp_cpp",
        f"atp_cpp-{_core.__version__}.dist-info",
    }
    assert {f.suffix for f in ours if f.parts[0] == "atp_cpp"} == {
        ".py",
        ".pyi",
        ".typed",
        ".gguf",
        MODULE.suffix,
    }
    assert [f.name for f in ours if f.suffix == MODULE.suffix] == [MODULE.name]


def test_wheel_holds_llama_cpps_converter(installed):
    """Conversion works without the source tree, and with the gguf package that belongs to it."""
    upstream = PurePosixPath("atp_cpp/convert/llama_cpp")
    parts = {f.relative_to(upstream).parts[0] for f in installed if f.is_relative_to(upstream)}
    assert parts == {"conversion", "gguf"}
    assert upstream / "conversion/base.py" in installed
    assert upstream / "gguf/gguf_writer.py" in installed


def test_version_is_the_wheels(installed):
    assert importlib.metadata.version("atp_cpp") == _core.__version__


def test_no_llama_symbol_can_be_found():
    """The loader's view: the module's entry is there, llama.cpp's functions are not."""
    library = ctypes.CDLL(str(MODULE))
    assert library.PyInit__core
    for name in ("llama_decode", "llama_backend_init", "ggml_init", "gguf_init_empty", "mtmd_free"):
        with pytest.raises(AttributeError):
            getattr(library, name)


@pytest.mark.skipif(sys.platform != "linux", reason="nm -D reads ELF files")
def test_only_the_entry_point_is_exported():
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(MODULE)], capture_output=True, text=True, check=True
    )
    assert [line.split()[-1] for line in listed.stdout.splitlines()] == ["PyInit__core"]
