"""Each optional library, used by our code in a process of its own.

The tests of each extra import its libraries themselves. A library that loads its submodules late
then has them all, and a read of one that nobody imported goes unnoticed. Here the program is the
first and the only one to import them. (Ray: test_ray_example.py, a process too.)
"""

import json
import os
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image

import atp_cpp
from atp_cpp.models.files import DEMO_ATP, DEMO_DIR, DEMO_MMPROJ, DEMO_MODEL
from atp_cpp.sidecar.sidecar import AtpSidecar
from support.hub_standin import Hub

SCENE = Path(__file__).resolve().parents[2] / "examples" / "easy.png"
HUB_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy")


def run(*arguments, **variables):
    """Standard output of a fresh Python, which must end well and say nothing of a traceback."""
    environment = {k: v for k, v in os.environ.items() if k not in HUB_VARIABLES}
    environment |= {"PYTHONPATH": str(Path(atp_cpp.__file__).parents[1]), **variables}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, text=True, capture_output=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def python(code, *arguments, **variables):
    return run("-c", code, *arguments, **variables)


@pytest.fixture
def served():
    """`served(hub) -> environment` of a process that knows no other hub."""
    servers = []

    def start(hub, home):
        servers.append(hub.start())
        return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def demo_on_a_hub(served, tmp_path):
    files = {n: (DEMO_DIR / n).read_bytes() for n in (DEMO_MODEL, DEMO_MMPROJ, DEMO_ATP)}
    return served(Hub(files, set(files)), tmp_path / "home")


def test_hub_from_pretrained(demo_on_a_hub):
    code = (
        "import sys, atp_cpp\n"
        "with atp_cpp.Captioner.from_pretrained('org/tiny', n_threads=1) as cap:\n"
        "    print(cap.caption(sys.argv[1]).text)\n"
    )
    assert python(code, SCENE, **demo_on_a_hub) == "a teal triangle\n"
    # what is in the cache, with the hub out of reach
    offline = {**demo_on_a_hub, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    assert python(code, SCENE, **offline) == "a teal triangle\n"


def test_hub_on_the_command_line(demo_on_a_hub):
    out = run("-m", "atp_cpp", "caption", SCENE, "-hf", "org/tiny", "-t", 1, **demo_on_a_hub)
    assert out == "a teal triangle\n"


def test_hub_that_refuses(served, tmp_path):
    """The errors are looked up in a submodule, too."""
    code = (
        "from atp_cpp.hub.gguf_files import hub_model\n"
        "from atp_cpp import ModelError\n"
        "try:\n    hub_model('org/other')\n"
        "except ModelError as error:\n    print(error)\n"
    )
    assert "no such repository" in python(code, **served(Hub({}, set()), tmp_path))


def test_hub_of_checkpoints(served, tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from atp_cpp.convert.source import fetch\n"
        "print(fetch('org/tiny')[0].joinpath('config.json').read_text())\n"
    )
    hub = Hub({"config.json": b"{}", "model.safetensors": b"x" * 100}, {"model.safetensors"})
    assert python(code, **served(hub, tmp_path / "home")) == "{}\n"


def test_http(tmp_path):
    Image.new("RGB", (8, 6), "red").save(tmp_path / "red.png")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    code = (
        "import sys\n"
        "from atp_cpp.images.urls import load_url\n"
        "from atp_cpp import ImageError\n"
        "print(load_url(sys.argv[1] + '/red.png', allow_http=True).shape)\n"
        "try:\n    load_url('http://127.0.0.1:9/', allow_http=True)\n"
        "except ImageError as error:\n    print(error)\n"
    )
    shape, refused = python(code, f"http://127.0.0.1:{server.server_address[1]}").splitlines()
    server.shutdown()
    server.server_close()
    assert shape == "(6, 8, 3)"
    assert "cannot be downloaded" in refused


def test_parquet(tiny_files, scene, tmp_path):
    model, mmproj = tiny_files
    rows, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    run("-m", "atp_cpp", "caption", scene, "-m", model, "--mmproj", mmproj, "-c", 512, "-t", 1,
        "-n", 2, "--out", rows, "--parquet", table)  # fmt: skip
    code = "import sys, pyarrow.parquet as p; print(p.read_table(sys.argv[1])['caption'][0])"
    said = json.loads(rows.read_text().splitlines()[0])["caption"]
    assert python(code, table).strip() == said.strip()


def test_heif(tmp_path):
    import pillow_heif

    pillow_heif.from_pillow(Image.new("RGB", (64, 48), "red")).save(tmp_path / "a.heic")
    code = "import sys; from atp_cpp.images import load; print(load.load_image(sys.argv[1]).shape)"
    assert python(code, tmp_path / "a.heic") == "(48, 64, 3)\n"


def test_gguf(tmp_path):
    """A sidecar read by us, written by the gguf package: the same modules."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from atp_cpp.sidecar.sidecar import AtpSidecar\n"
        "AtpSidecar.read_gguf(sys.argv[1]).save_dir(sys.argv[2])\n"
    )
    python(code, DEMO_DIR / DEMO_ATP, tmp_path / "modules")
    out = tmp_path / "atp.gguf"
    run("-m", "atp_cpp", "convert", "--atp", tmp_path / "modules", "--outfile", out)
    assert AtpSidecar.read_gguf(out) == AtpSidecar.read_gguf(DEMO_DIR / DEMO_ATP)


@pytest.mark.torch
def test_train_and_convert(tiny_llava, llava_json, tmp_path):
    """Two steps of training, then model and sidecar to GGUF: a process each."""
    out, ggufs = tmp_path / "run", tmp_path / "gguf"
    run("-m", "atp_cpp", "train", "-m", tiny_llava, "--data", llava_json, "--out", out, "--cuts",
        2, "--mode", "thresholds", "--steps", 2, "--images-per-batch", 2,
        "--device", "cpu")  # fmt: skip
    run("-m", "atp_cpp", "convert", tiny_llava, "--atp", out, "--outfile-dir", ggufs)
    assert len(list(ggufs.glob("*.gguf"))) == 3
