"""The cache of image embeddings: exact, bounded, whatever lies in its folder."""

import errno
import logging
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from atp_cpp.batch.run.embeddings import EmbeddingCache
from atp_cpp.errors import AtpError

SHA = "ab" * 32


def embd(seed, rows=16, cols=8):
    return np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)


def entries(folder):
    return sorted(Path(folder).glob("*.embd"))


def size(folder):
    return sum(path.stat().st_size for path in Path(folder).iterdir())


def test_what_is_put_comes_back_bit_for_bit(tmp_path):
    cache = EmbeddingCache(tmp_path / "a" / "b")
    values = embd(1)
    values[0, :4] = np.nan, np.inf, -0.0, 1e-45
    cache.put(SHA, "e", values)
    back = EmbeddingCache(tmp_path / "a" / "b").get(SHA, "e")
    assert back.dtype == np.float32 and back.shape == (16, 8)
    assert back.tobytes() == values.tobytes()


def test_other_images_and_other_encoders_are_not_met(tmp_path):
    cache = EmbeddingCache(tmp_path)
    cache.put(SHA, "e", embd(1))
    assert cache.get("cd" * 32, "e") is None
    assert cache.get(SHA, "another") is None
    cache.put(SHA, "another", embd(2))
    assert cache.get(SHA, "e").tobytes() == embd(1).tobytes()


def test_a_later_put_replaces(tmp_path):
    cache = EmbeddingCache(tmp_path)
    cache.put(SHA, "e", embd(1))
    cache.put(SHA, "e", embd(2, rows=4))
    assert cache.get(SHA, "e").tobytes() == embd(2, rows=4).tobytes()
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize("where", [0, 3, 8, 39, 40, 55, 56, 60, 64, 100, 575])
def test_an_altered_entry_is_no_entry(tmp_path, where):
    cache = EmbeddingCache(tmp_path)
    cache.put(SHA, "e", embd(1))
    (path,) = entries(tmp_path)
    raw = bytearray(path.read_bytes())
    assert len(raw) == 64 + 512
    raw[where] ^= 1
    path.write_bytes(raw)
    assert cache.get(SHA, "e") is None
    cache.put(SHA, "e", embd(1))
    assert cache.get(SHA, "e") is not None


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 575, 577])
def test_an_entry_of_another_length_is_no_entry(tmp_path, n):
    cache = EmbeddingCache(tmp_path)
    cache.put(SHA, "e", embd(1))
    (path,) = entries(tmp_path)
    path.write_bytes((path.read_bytes() + b"x")[:n])
    assert cache.get(SHA, "e") is None


def test_an_entry_under_anothers_name_is_no_entry(tmp_path):
    cache = EmbeddingCache(tmp_path)
    cache.put(SHA, "e", embd(1))
    (path,) = entries(tmp_path)
    cache.put("cd" * 32, "e", embd(2))
    (other,) = set(entries(tmp_path)) - {path}
    other.write_bytes(path.read_bytes())
    assert cache.get("cd" * 32, "e") is None


def test_it_never_grows_beyond_its_size_and_the_oldest_go(tmp_path):
    limit = 20 * 576
    cache = EmbeddingCache(tmp_path, limit)
    for i in range(100):
        cache.put(f"{i:064x}", "e", embd(i))
        assert size(tmp_path) <= limit
        for path in entries(tmp_path):  # as old as it is, whatever the clock's grain
            if path.stat().st_mtime > 10**6:
                os.utime(path, (i, i))
    there = [i for i in range(100) if cache.get(f"{i:064x}", "e") is not None]
    assert there == list(range(min(there), 100))
    assert 15 <= len(there) <= 20


def test_a_full_folder_of_an_earlier_run_is_made_smaller(tmp_path):
    big = EmbeddingCache(tmp_path)
    for i in range(30):
        big.put(f"{i:064x}", "e", embd(i))
    EmbeddingCache(tmp_path, 10 * 576).put(SHA, "e", embd(99))
    assert size(tmp_path) <= 10 * 576


def test_an_entry_larger_than_the_cache_is_not_kept(tmp_path):
    cache = EmbeddingCache(tmp_path, 500)
    cache.put(SHA, "e", embd(1))
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_are_left_alone(tmp_path):
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"x" * 5000)
    (tmp_path / "notes.embd").write_bytes(b"x" * 5000)
    (tmp_path / "folder").mkdir()
    cache = EmbeddingCache(tmp_path, 3 * 576)
    for i in range(10):
        cache.put(f"{i:064x}", "e", embd(i))
    assert photo.stat().st_size == 5000
    assert (tmp_path / "notes.embd").exists() and (tmp_path / "folder").is_dir()
    assert cache.get(f"{9:064x}", "e") is not None


def test_what_a_killed_process_left_goes_in_time(tmp_path):
    stale, young = tmp_path / f".{'0' * 32}.embd-part", tmp_path / f".{'1' * 32}.embd-part"
    stale.write_bytes(b"x" * 100)
    young.write_bytes(b"x" * 100)
    os.utime(stale, (1, 1))
    EmbeddingCache(tmp_path).put(SHA, "e", embd(1))
    assert not stale.exists() and young.exists()


def test_a_full_disk_is_said_once_and_costs_nothing_else(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "atp_cpp")
    cache = EmbeddingCache(tmp_path)
    cache.put(SHA, "e", embd(1))

    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    for i in range(3):
        cache.put(f"{i:064x}", "e", embd(i))
    assert cache.get(SHA, "e") is not None
    assert len(list(tmp_path.iterdir())) == 1  # nothing half written stays
    (record,) = caplog.records
    assert "No space left on device" in record.getMessage()
    assert str(tmp_path) in record.getMessage()


def test_a_folder_that_vanishes_is_said_once(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "atp_cpp")
    cache = EmbeddingCache(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    cache.put(SHA, "e", embd(1))
    cache.put(SHA, "e", embd(1))
    assert cache.get(SHA, "e") is None
    assert len(caplog.records) == 1


def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AtpError, match="file: expected a folder for image embeddings"):
        EmbeddingCache(tmp_path / "file")


def fill(folder, limit, first):
    cache = EmbeddingCache(folder, limit)
    for i in range(200):
        cache.put(f"{first + i % 50:064x}", "e", embd(first + i % 50))
        back = cache.get(f"{i % 50:064x}", "e")
        assert back is None or back.tobytes() == embd(i % 50).tobytes()


def test_two_processes_share_a_folder(tmp_path):
    limit = 32 * 576
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=fill, args=(tmp_path, limit, n)) for n in (0, 25)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert size(tmp_path) <= limit + limit // 16
    assert not list(tmp_path.glob("*part"))
