"""Situations that people reported to other projects: what comes here, one row each.

A row is the report (repository#number), what the person did, how it is done here, and what must
come: a text of the answer, `Refused` (the class of the error and what its one line names) or `Exit`
(code and output of the program). An `act` that returns True has checked its numbers itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from atp_cpp import AtpError, Captioner, ImageError, ModelError, StageError
from support import bug_reports as did
from support.bug_reports import (
    EASY,
    MMPROJ,
    MODEL,
    as_url,
    asked,
    caption_of,
    chat,
    encoded,
    says,
    shown,
)

WEBP = "data:image/webp;base64,"
SEEN = "a teal triangle"  # what the demo model says of the easy picture


@dataclass(frozen=True)
class Refused:
    """An error of this class whose message is one line with these words."""

    kind: type[Exception]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Exit:
    """The program ends with this code, and these words are in what it says."""

    code: int
    words: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One report.

    Attributes:
        report: repository#number.
        did: what the person did.
        act: the same here; given the world below.
        expected: what must come.
    """

    report: str
    did: str
    act: Callable[[Any], Any]
    expected: Any


@pytest.fixture(scope="module")
def world(demo_captioner, tiny_captioner, tiny_files, tiny_model, tiny_mmproj, tmp_path_factory):
    """The demo model, a tiny one, their makers, and a folder."""
    return SimpleNamespace(
        demo=demo_captioner,
        tiny=tiny_captioner,
        tiny_files=tiny_files,
        tiny_model=tiny_model,
        tiny_mmproj=tiny_mmproj,
        folder=tmp_path_factory.mktemp("reports"),
    )


OFTEN = "often asked, without one report"
CPP, PY = "ggml-org/llama.cpp", "abetlen/llama-cpp-python"
ROWS = (
    # -- the image encoder
    Row(f"{CPP}#25814", "LLaVA-1.5's class token", did.first_patch_is_first_token, True),
    Row(f"{CPP}#16842", "Qwen-VL: a wide image", did.shape_is_kept, True),
    # -- many images, large images, memory
    Row(f"{CPP}#16921", "wants fewer image tokens than the encoder makes", did.fewer_tokens, True),
    Row(f"{CPP}#27725", "each image leaves memory behind", did.nothing_left_behind, True),
    Row(f"{PY}#771", "several images in one batch", did.together_as_alone, True),
    Row(
        f"{CPP}#18757",
        "a photo of more tokens than the context has places",
        did.photo_of_many_tokens,
        Refused(StageError, ("32", "n_ctx")),
    ),
    Row(f"{CPP}#21461", "a photo of 24 megapixels", did.big_photo, True),
    Row(
        "gokayfem/ComfyUI_VLM_nodes#81",
        "image tokens do not fit the context",
        lambda w: Captioner(n_ctx=256, n_threads=1, self_test=False).caption(EASY),
        Refused(StageError, ("256", "n_ctx")),
    ),
    # -- files of images
    Row(f"{PY}#1140", "a WebP image", says(encoded("WEBP", lossless=True)), SEEN),
    Row(
        f"{PY}#1140",
        "a WebP image as data URL",
        lambda w: chat(w, asked(shown(as_url(encoded("WEBP", lossless=True), WEBP)))),
        SEEN,
    ),
    Row(f"{CPP}#20870", "a photo with an EXIF orientation", says(did.turned()), SEEN),
    Row(f"{CPP}#12410", "a JPEG in CMYK", says(encoded("JPEG", lambda i: i.convert("CMYK"))), SEEN),
    Row(f"{CPP}#12410", "a progressive JPEG", says(encoded("JPEG", progressive=True)), SEEN),
    Row(OFTEN, "a PNG of 16 bits a channel", says(did.deep_png()), SEEN),
    Row(OFTEN, "a PNG with its workflow, 2 MB of text", says(did.with_workflow()), SEEN),
    Row(
        "ollama/ollama#18418",
        "a photo with an EXIF orientation, as data URL",
        lambda w: chat(w, asked(shown(as_url(did.turned())))),
        SEEN,
    ),
    Row(OFTEN, "grey with alpha, black on nothing", did.clear_is_white, True),
    Row(
        OFTEN,
        "a path that is not there",
        says("no/such/photo.jpg"),
        Refused(ImageError, ("no/such/photo.jpg", "no such file")),
    ),
    Row(
        OFTEN,
        "a folder instead of an image",
        says(EASY.parent),
        Refused(ImageError, (str(EASY.parent), "directory")),
    ),
    Row(
        f"{CPP}#13959",
        "the image cannot be read: the program says so and does not answer without it",
        did.program("caption", __file__),
        Exit(2, ("test_bug_reports.py", "text file")),
    ),
    # -- model files
    Row(
        f"{CPP}#7799",
        "the mmproj file as model and as mmproj",
        caption_of(MMPROJ, MMPROJ),
        Refused(ModelError, (str(MMPROJ), "is a vision projector")),
    ),
    Row(
        "JamePeng/llama-cpp-python#165",
        "a text model without its mmproj",
        caption_of(MODEL),
        Refused(ModelError, (str(MODEL), "give its mmproj file too")),
    ),
    Row(
        OFTEN,
        "a text model as mmproj",
        caption_of(MODEL, MODEL),
        Refused(ModelError, (str(MODEL), "is a text model")),
    ),
    Row(
        "LostRuins/koboldcpp#1662",
        "the mmproj of a model of another width",
        caption_of(MODEL, lambda w: w.tiny_mmproj("mlp")),
        Refused(ModelError, ("mmproj-mlp.gguf", "n_embd")),
    ),
    Row(
        f"{CPP}#17138",
        "an mmproj without its projector type",
        caption_of(MODEL, did.no_projector_type),
        Refused(ModelError, ("kindless.gguf",)),
    ),
    Row(
        f"{CPP}#14951",
        "a model of an architecture that llama.cpp does not have",
        caption_of(did.mllama, MMPROJ),
        Refused(ModelError, ("mllama.gguf", "unknown model architecture", "mllxm")),
    ),
    Row(
        "huggingface_hub 2",
        "submodules that are attributes only when imported",
        did.import_of_hub,
        "a/b",
    ),
    # -- clients of OpenAI's interface
    Row(
        f"{PY}#964",
        "a system message, then a JPEG as data URL",
        lambda w: chat(
            w,
            asked(shown(as_url(encoded("JPEG"), "data:image/jpeg;base64,"))),
            before=({"role": "system", "content": "You describe images."},),
        ),
        SEEN,
    ),
    Row(
        f"{PY}#1223",
        "the path of a local image as url",
        lambda w: chat(w, asked(shown(EASY.as_uri()))),
        SEEN,
    ),
    Row(
        f"{CPP}#14615",
        "the image before the text, and a system message that is a list",
        lambda w: chat(
            w,
            asked(shown(as_url(encoded("PNG"))))[::-1],
            before=({"role": "system", "content": [{"type": "text", "text": "Describe."}]},),
        ),
        SEEN,
    ),
    Row(
        f"{CPP}#26930",
        "a pattern that the grammar cannot hold",
        lambda w: chat(
            w,
            "What?",
            response_format={
                "type": "json_object",
                "schema": {"type": "string", "pattern": "^(?=a)b$"},
            },
        ),
        Refused(AtpError, ("(?=a)",)),
    ),
    Row(
        OFTEN,
        "input_image with the url itself",
        lambda w: chat(
            w, asked({"type": "input_image", "image_url": as_url(encoded("PNG"))})
        ),
        SEEN,
    ),
    Row(
        OFTEN,
        "base64 without the head of a data URL",
        lambda w: chat(
            w, asked(shown(as_url(encoded("PNG"), "")))
        ),
        SEEN,
    ),
    Row(
        OFTEN,
        "role developer, and an assistant whose content is null",
        lambda w: chat(
            w,
            asked(shown(str(EASY))),
            before=(
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": None},
            ),
        ),
        SEEN,
    ),
    Row(
        OFTEN,
        "a data URL that holds no image",
        lambda w: chat(
            w, asked(shown(as_url(b"not an image" * 9)))
        ),
        Refused(ImageError, ("data:image/png", "text file")),
    ),
    Row(
        OFTEN,
        "an empty question",
        did.empty_question,
        True,
    ),
)  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.report}: {row.did}")
def test_reported_situation(row, world, cli):
    world.cli = cli
    if isinstance(row.expected, Refused):
        with pytest.raises(row.expected.kind) as caught:
            row.act(world)
        message = str(caught.value)
        assert [word for word in row.expected.words if word not in message] == [], message
        assert "\n" not in message
        assert len(message) <= 500
        return
    came = row.act(world)
    if isinstance(row.expected, Exit):
        assert came.code == row.expected.code
        assert [word for word in row.expected.words if word not in came.out + came.err] == []
    elif row.expected is True:
        assert came is True
    else:
        assert row.expected in came


def test_every_row_says_where_and_what():
    assert len({(row.report, row.did) for row in ROWS}) == len(ROWS)
    assert [row for row in ROWS if not (row.did and row.report)] == []
