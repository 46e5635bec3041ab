"""A forked child makes captions, with a Captioner of its own or with its parent's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

IMAGE = Path(__file__).resolve().parents[1] / "examples" / "easy.png"
HEAD = f"""
import multiprocessing, os
import atp_cpp
I = {str(IMAGE)!r}
cap = atp_cpp.Captioner(n_threads=2)
said = cap.caption(I).text
assert said
"""
BY_OS_FORK = """
pid = os.fork()
if pid == 0:
    os._exit(0 if {captioner}.caption(I).text == said else 3)
assert os.waitpid(pid, 0)[1] == 0
assert cap.caption(I).text == said
"""
BY_POOL = """
def work(image):
    global mine
    if "mine" not in globals():
        mine = atp_cpp.Captioner(n_threads=2)
    return mine.caption(image).text

with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(work, [I] * 4) == [said] * 4
assert cap.caption(I).text == said
"""
BATCH = """
pid = os.fork()
if pid == 0:
    rows = list(cap.caption_many([I] * 3, batch_size=2))
    os._exit(0 if [r.caption for r in rows] == [said] * 3 else 3)
assert os.waitpid(pid, 0)[1] == 0
"""
CLOSED = """
pid = os.fork()
if pid == 0:
    cap.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert cap.caption(I).text == said
"""

BUSY = """
import threading, time
inside, go_on = threading.Event(), threading.Event()

def on_token(text):
    inside.set()
    go_on.wait(60)

worker = threading.Thread(target=lambda: cap.caption(I, on_token=on_token))
worker.start()
inside.wait(60)
pid = os.fork()
if pid == 0:
    try:
        cap.caption(I)
    except atp_cpp.AtpError as error:
        fine = "make a new one in the child" in str(error)
        own = atp_cpp.Captioner(n_threads=2).caption(I).text
        os._exit(0 if fine and own == said else 3)
    os._exit(4)
try:
    assert os.waitpid(pid, 0)[1] == 0
finally:
    go_on.set()
    worker.join()
"""
OPEN_RUN = """
run = cap.caption_many([I] * 3, batch_size=2)
next(run)
pid = os.fork()
if pid == 0:
    try:
        next(run)
    except atp_cpp.AtpError as error:
        run.close()
        os._exit(0 if "before the process forked" in str(error) else 3)
    os._exit(4)
assert os.waitpid(pid, 0)[1] == 0
assert [row.caption for row in run] == [said] * 2
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.parametrize(
    "body",
    [
        BY_OS_FORK.format(captioner="atp_cpp.Captioner(n_threads=2)"),
        BY_OS_FORK.format(captioner="cap"),
        BY_POOL,
        BATCH,
        CLOSED,
        BUSY,
        OPEN_RUN,
    ],
    ids=["its own", "inherited", "pool", "batch", "closed in the child", "busy", "open run"],
)
def test_a_forked_child_captions(body):
    run = subprocess.run(
        [sys.executable, "-c", HEAD + body], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
