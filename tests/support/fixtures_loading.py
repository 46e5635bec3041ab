"""No thread that opens images is left behind."""

import time

import pytest

from support.loading_runs import n_workers


@pytest.fixture
def no_thread_is_left():
    yield
    until = time.monotonic() + 60
    while n_workers() and time.monotonic() < until:
        time.sleep(0.01)
    assert n_workers() == 0
