"""What people did in the situations of test_bug_reports.py, and pictures such as they had."""

import base64
import io
import struct
import subprocess
import sys
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image

from atp_cpp import Captioner, SamplingConfig
from atp_cpp import _core as core
from atp_cpp.images.load import load_image
from atp_cpp.models.files import DEMO_DIR, DEMO_MMPROJ, DEMO_MODEL
from support.resident import growth

EASY = Path(__file__).resolve().parents[2] / "examples" / "easy.png"
FEW = SamplingConfig(n_predict=4)
MODEL, MMPROJ = DEMO_DIR / DEMO_MODEL, DEMO_DIR / DEMO_MMPROJ


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(form, change=lambda image: image, **options):
    """Bytes of the easy picture in another form."""
    out = io.BytesIO()
    with Image.open(EASY) as image:
        change(image.convert("RGB")).save(out, form, **options)
    return out.getvalue()


def says(data):
    """The demo model's answer about an encoded image."""
    return lambda w: w.demo.caption(data, sampling=SamplingConfig(n_predict=16)).text


def turned():
    """Stored lying on its side, with the EXIF tag that puts it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("JPEG", lambda i: i.transpose(Image.Transpose.ROTATE_90), exif=exif, quality=95)


def deep_png():
    """16 bits a channel, which Pillow does not write."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    with Image.open(EASY) as image:
        rgb = np.asarray(image.convert("RGB")).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in rgb)
    head = struct.pack(">IIBBBBB", rgb.shape[1], rgb.shape[0], 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def with_workflow():
    """A PNG as ComfyUI and A1111 save it: the whole workflow in a text chunk, before the pixels."""
    plain = encoded("PNG")
    body = b"workflow\0" + b'{"nodes": []} ' * 150_000
    text = struct.pack(">I", len(body)) + b"tEXt" + body
    text += struct.pack(">I", zlib.crc32(b"tEXt" + body))
    return plain[:33] + text + plain[33:]


def clear_ground():
    """Grey and alpha: a black disc on nothing; what lies under nothing is black too."""
    image = Image.new("LA", (64, 64), (0, 0))
    image.paste((0, 255), (20, 20, 44, 44))
    return image


def chat(w, content, role="user", before=(), **options):
    messages = [*before, {"role": role, "content": content}]
    answer = w.demo.create_chat_completion(messages, max_tokens=16, temperature=0.0, **options)
    return answer["choices"][0]["message"]["content"]


def asked(image):
    return [{"type": "text", "text": "Describe the image."}, image]


def shown(url):
    """The part of a message that shows an image."""
    return {"type": "image_url", "image_url": {"url": url}}


def as_url(data, head="data:image/png;base64,"):
    return head + base64.b64encode(data).decode()


def engine_of(w, arch, layout, **options):
    options = {"n_ctx": 512, "n_threads": 1, "self_test": False} | options
    return Captioner(w.tiny_model(arch), mmproj=w.tiny_mmproj(layout), **options)


def first_patch_is_first_token(w):
    """LLaVA-1.5's class token: patch i makes token i, none is lost and none is the class token."""
    grey = np.full((112, 112, 3), 128, np.uint8)
    files = map(str, (w.tiny_model("llama"), w.tiny_mmproj("mlp-cls")))
    with closing(core.Engine(*files, n_ctx=512, n_threads=1)) as engine:
        plain = image_rows(engine, grey)
        for patch in (0, 5, 63):
            image = grey.copy()
            y, x = divmod(patch, 8)
            image[14 * y : 14 * y + 14, 14 * x : 14 * x + 14] = (255, 0, 90)
            moved = np.linalg.norm(image_rows(engine, image) - plain, axis=1)
            assert moved.argmax() == patch, moved
    return True


def image_rows(engine, pixels):
    sequence = engine.encode(engine.info.media_marker, [pixels])
    return np.asarray(sequence.embd)


def big_photo(w):
    assert w.tiny.caption(noise(4000, 6000), sampling=FEW).report.n_image_tokens == 64
    return True


def photo_of_many_tokens(w):
    with engine_of(w, "qwen2vl", "qwen2vl", n_ctx=32) as cap:
        return cap.caption(noise(600, 900), sampling=FEW)


def empty_question(w):
    assert w.demo.caption(EASY, "", sampling=FEW).text
    return True


def shape_is_kept(w):
    """Qwen-VL: an image twice as wide as high makes twice as many columns as rows."""
    with engine_of(w, "qwen2vl", "qwen2vl", n_ctx=1024) as cap:
        wide = cap.caption(noise(140, 280), sampling=FEW).report
        white = np.full((140, 140, 3), 255, np.uint8)
        square = cap.caption(white, sampling=FEW).report
    assert [(r, c) for r, c in wide.grids] == [(5, 10)]
    assert [(r, c) for r, c in square.grids] == [(5, 5)]
    return True


def fewer_tokens(w):
    whole = w.tiny.caption(EASY, sampling=FEW).report
    cut = w.tiny.caption(EASY, sampling=FEW, policy="fastv:keep=0.25,after=2").report
    assert cut.n_kept == [16]
    assert cut.kv_bytes < whole.kv_bytes
    return True


def nothing_left_behind(w):
    # a page or two is the heap's; 64 image tokens of cache would be 128 KiB a call
    assert growth(lambda: w.tiny.caption(EASY, sampling=FEW), n=5) < 32 << 10
    return True


def clear_is_white(w):
    """What is transparent is paper, not the black that lies under it."""
    pixels = load_image(clear_ground())
    assert pixels[2, 2].tolist() == [255, 255, 255]
    assert pixels[32, 32].tolist() == [0, 0, 0]
    assert w.tiny.caption(clear_ground(), sampling=FEW).report.n_image_tokens == 64
    return True


def together_as_alone(w):
    images = [noise(60, 40, seed) for seed in range(4)]
    alone = [w.tiny.caption(image, "What?", sampling=FEW).text for image in images]
    rows = list(w.tiny.caption_many(images, "What?", batch_size=4, sampling=FEW))
    assert [row.caption for row in rows] == alone
    return True


def no_projector_type(w):
    path = w.folder / "kindless.gguf"
    content = MMPROJ.read_bytes()
    assert content.count(b"clip.projector_type") == 1
    path.write_bytes(content.replace(b"clip.projector_type", b"clip.projector_kind"))
    return path


def mllama(w):
    path = w.folder / "mllama.gguf"
    path.write_bytes(w.tiny_model("llama").read_bytes().replace(b"llama", b"mllxma"[:5]))
    return path


def import_of_hub(_):
    """In a process where nothing imported huggingface_hub's submodules before."""
    code = (
        "import atp_cpp\n"
        "try:\n"
        "    atp_cpp.Captioner.from_pretrained('a/b', 'c.gguf', local_files_only=True)\n"
        "except atp_cpp.ModelError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def caption_of(model=None, mmproj=None, **options):
    """Loads two files, or with functions of the world in their place, and captions."""

    def run(w):
        paths = [path(w) if callable(path) else path for path in (model, mmproj)]
        with Captioner(paths[0], mmproj=paths[1], n_threads=1, self_test=False, **options) as cap:
            return cap.caption(EASY, sampling=FEW).text

    return run


def program(*arguments):
    return lambda w: w.cli(*arguments)
