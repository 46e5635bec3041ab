"""Locks: one holder at a time, free again when the file is closed."""

import errno
import os
from types import SimpleNamespace

import pytest

from atp_cpp.storage import locks
from atp_cpp.storage.locks import take_lock


@pytest.fixture
def opened(tmp_path):
    """A function that opens the same file once more."""
    path, descriptors = tmp_path / "file", []

    def open_again():
        descriptors.append(os.open(path, os.O_RDWR | os.O_CREAT))
        return descriptors[-1]

    yield open_again
    for descriptor in descriptors:
        os.close(descriptor)


def test_the_second_is_refused_until_the_first_is_closed(opened):
    first, second = opened(), opened()
    assert take_lock(first)
    assert take_lock(first)  # its own
    assert not take_lock(second)
    os.dup2(second, first)  # closes what the first one had open
    assert take_lock(second)


class FakeMsvcrt:
    """Locks of Windows as documented: bytes of a file, mandatory, LK_LOCK gives up after a time."""

    LK_LOCK, LK_NBLCK = 1, 2

    def __init__(self, *, held=0, number=errno.EACCES):
        self.held, self.number, self.calls = held, number, []

    def locking(self, descriptor, mode, n_bytes):
        self.calls.append((os.lseek(descriptor, 0, os.SEEK_CUR), mode, n_bytes))
        if len(self.calls) <= self.held:
            raise OSError(errno.EDEADLK if mode == self.LK_LOCK else self.number, "locked")


@pytest.mark.parametrize(("held", "wait", "taken"), [(0, False, True), (1, False, False),
                                                     (0, True, True), (3, True, True)])  # fmt: skip
def test_on_windows_one_far_byte_is_locked(opened, monkeypatch, held, wait, taken):
    fake = FakeMsvcrt(held=held)
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "msvcrt", fake)
    descriptor = opened()
    os.write(descriptor, b"abc")
    assert take_lock(descriptor, wait=wait) == taken
    assert len(fake.calls) == (held + 1 if wait else 1)
    assert {(place > 2**30, n) for place, _, n in fake.calls} == {(True, 1)}
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == 3  # where it was


def test_a_file_system_without_locks(opened, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(locks, "fcntl", SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4))
    assert take_lock(opened())
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "msvcrt", FakeMsvcrt(held=9, number=errno.EINVAL))
    assert take_lock(opened())
