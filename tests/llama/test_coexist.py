"""atp_cpp and another llama.cpp, of another version, in one process, both with a model loaded.

xllamacpp exports thousands of llama_ and ggml_ symbols of its own. Were ours not hidden, one engine
would call into the other's code.
"""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.coexist

OURS = """
import atp_cpp
from atp_cpp._core import Engine
def ours():
    engine = Engine(model, n_ctx=256, n_threads=1)
    tokens = engine.generate("hello world", [], n_predict=16).tokens
    engine.close()
    return tokens
answers.append(ours())
"""

THEIRS = """
if everyone:  # their symbols become visible to every library loaded later
    sys.setdlopenflags(sys.getdlopenflags() | os.RTLD_GLOBAL)
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = model
params.n_ctx = 256
params.n_parallel = 1
server = xllamacpp.Server(params)
reply = server.handle_completions({"prompt": "hello world", "max_tokens": 4, "temperature": 0})
assert reply["usage"]["completion_tokens"] > 0, reply
"""


def run(model, *parts, everyone=False):
    """Run `parts` in a fresh Python and return the token lists that atp_cpp generated."""
    script = "\n".join(
        [
            "import json, os, sys",
            f"model, everyone, answers = {str(model)!r}, {everyone}, []",
            *parts,
            "print('answers:', json.dumps(answers), flush=True)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [text for text in done.stdout.splitlines() if text.startswith("answers: ")]
    return json.loads(line.removeprefix("answers: "))


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="module")
def alone(model):
    """The tokens without the other library, the same each time."""
    first, second = run(model, OURS, OURS)
    assert first == second
    assert len(first) > 0
    return first


@pytest.mark.parametrize("everyone", [False, True], ids=["local", "global"])
def test_ours_first(model, alone, everyone):
    assert run(model, OURS, THEIRS, OURS, everyone=everyone) == [alone, alone]


@pytest.mark.parametrize("everyone", [False, True], ids=["local", "global"])
def test_theirs_first(model, alone, everyone):
    assert run(model, THEIRS, OURS, everyone=everyone) == [alone]
