"""Checksums: those that everybody else computes, and without a file in memory."""

import hashlib
import tracemalloc

import numpy as np
import pytest

from atp_cpp.storage.digest import file_sha256, sha256_hex

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_published_values(tmp_path):
    path = tmp_path / "file"
    for data, digest in ((b"abc", ABC), (b"", NOTHING)):
        path.write_bytes(data)
        assert file_sha256(path) == sha256_hex(data) == digest
    assert sha256_hex() == NOTHING


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_a_file_of_several_pieces(tmp_path, extra):
    data = bytes(range(256)) * (3 << 12) + b"x"
    data = data[: (3 << 20) + extra]
    (tmp_path / "file").write_bytes(data)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_parts_are_one_text():
    assert sha256_hex(b"a", memoryview(b"b"), np.frombuffer(b"c", np.uint8)) == ABC


def test_a_file_is_not_held_in_memory(tmp_path):
    path = tmp_path / "file"
    with path.open("wb") as stream:
        stream.truncate(64 << 20)
    tracemalloc.start()
    try:
        file_sha256(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        file_sha256(tmp_path / "file")
