"""Programs that end while a thread of theirs, or of ours, is inside the engine.

Each is run several times: how it ended used to depend on where the thread was.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import atp_cpp

SCENE = Path(__file__).resolve().parents[1] / "examples" / "scene.png"
BEGIN = (
    "import sys, threading, time, atp_cpp\ncap = atp_cpp.Captioner(n_threads=1)\nI = sys.argv[1]\n"
)
STREAM = """
parts = [{"type": "image_url", "image_url": {"url": I}}, {"type": "text", "text": "Describe it."}]
g = cap.create_chat_completion([{"role": "user", "content": parts}], stream=True)
print(next(g)["object"])
"""
THREAD = """
inside = threading.Event()
def work():
    %s
threading.Thread(target=work, daemon=True).start()
inside.wait(30)
print("end")
"""
ENDINGS = {
    "open stream": STREAM,
    "caption": THREAD % "while True: cap.caption(I, on_token=lambda t: inside.set())",
    "caption_many": THREAD % "for row in cap.caption_many([I] * 9999): inside.set()",
    "stream in a thread": THREAD % "inside.set(); exec(sys.argv[2])",
    "load": THREAD % "inside.set(); atp_cpp.Captioner(n_threads=1)",
    "callback that waits for ever": THREAD
    % "cap.caption(I, on_token=lambda t: inside.set() or threading.Event().wait())",
}


def run(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(atp_cpp.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", BEGIN + code, str(SCENE), *arguments], env=environment, text=True,
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_program_ends_well_and_says_nothing(ending):
    for _ in range(3):
        done = run(ENDINGS[ending], STREAM)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout


def test_who_ends_the_program_may_still_use_the_engine():
    """atexit's functions of the user's run before the engine is left."""
    done = run("import atexit\natexit.register(lambda: print(cap.caption(I).finish_reason))\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "stop\n", "")
