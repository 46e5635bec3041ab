"""A question and n images -> the prompt text the engine expects: one media marker per image.

The model's own chat template (the GGUF's ``tokenizer.chat_template``) is rendered as Hugging Face
does it, in a sandbox. What the template writes for an image (``<image>``,
``<|vision_start|><|image_pad|><|vision_end|>``, ``[IMG]`` …) is found by rendering with and without
images, and gives way to the media marker: the engine adds the tokens around an image itself. White
space that the template puts around an image stays. Templates that know text only get the markers as
text, before the question. A template is never guessed from a model's name.
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from atp_cpp.errors import AtpError, ModelError

if TYPE_CHECKING:
    from atp_cpp._core import ModelInfo

DEFAULT_PROMPT = "Describe the image."

# stands for the question while a template is taken apart; no template writes such characters
_TEXT = "\x02question\x03"

# <image>, <|image_pad|>, [IMG]
_TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")

_log = logging.getLogger(__name__)


class ChatPrompt:
    """Renders prompts for one model."""

    def __init__(
        self,
        template: str,
        *,
        bos: str,
        eos: str,
        add_bos: bool,
        marker: str,
        nfc: bool = False,
        lstrip: Sequence[str] = (),
        rstrip: Sequence[str] = (),
    ) -> None:
        """Compiles the template.

        Args:
            template: Jinja source, or "" for a model without one: then LLaVA-1.5's form is used,
                and a note says so.
            bos: text of the beginning-of-sequence token.
            eos: text of the end-of-sequence token.
            add_bos: whether the tokeniser puts that token in front by itself; then the template's
                own is taken off, so that there are not two.
            marker: the engine's media marker.
            nfc: whether prompts are composed (Unicode's NFC), as the model's own tokeniser would.
            lstrip: tokens which white space to their left belongs to, in that tokeniser.
            rstrip: likewise to their right.

        Raises:
            ModelError: the template is not valid Jinja.
        """
        self._bos = bos
        self._eos = eos
        self._add_bos = add_bos
        self._marker = marker
        self._nfc = nfc
        self._lstrip = tuple(lstrip)
        self._rstrip = tuple(rstrip)
        # tags that the template writes for an image: tokens that no text may hold
        self._signs: set[str] = set()
        # number of images -> prompt with _TEXT in place of the question
        self._frames: dict[int, str] = {}
        self._template: jinja2.Template | None = None
        if not template.strip():
            _log.warning(
                "the model file has no chat template; using LLaVA-1.5's form (USER: … ASSISTANT:)"
            )
            return
        try:
            self._template = _environment().from_string(template)
        except jinja2.TemplateError as error:
            raise ModelError(
                f"the model file's chat template is not valid Jinja: {_one_line(error)}; "
                "convert the model again"
            ) from error

    @classmethod
    def for_model(cls, info: ModelInfo) -> ChatPrompt:
        """The prompts of a loaded model.

        Args:
            info: what was loaded.

        Raises:
            ModelError: its template is not valid Jinja.
        """
        return cls(
            info.chat_template,
            bos=info.bos,
            eos=info.eos,
            add_bos=info.add_bos,
            marker=info.media_marker,
            nfc=info.nfc,
            lstrip=info.lstrip,
            rstrip=info.rstrip,
        )

    def render(self, question: str, n_images: int) -> str:
        """The prompt for one turn: all images, then the question.

        Args:
            question: what the user asks; white space at its ends is dropped.
            n_images: how many images come with it, >= 1.

        Returns:
            Text with exactly ``n_images`` media markers.

        Raises:
            AtpError: the question holds the media marker, or what the model has in its place.
            ModelError: the template cannot be rendered.
        """
        if n_images not in self._frames:
            self._frames[n_images] = self._frame(n_images)
        for sign, whose in ((self._marker, "engine"), *((s, "model") for s in sorted(self._signs))):
            if sign in question:
                raise AtpError(
                    f"the prompt holds {sign!r}, the {whose}'s own sign for an image; "
                    "leave it out, images are placed before the text"
                )
        prompt = self._frames[n_images].replace(_TEXT, question.strip())
        return self._as_tokenised(prompt)

    def _as_tokenised(self, prompt: str) -> str:
        """Does what the model's own tokeniser would do to a prompt, and the engine's does not."""
        if self._nfc:
            prompt = unicodedata.normalize("NFC", prompt)
        for tokens, form in ((self._lstrip, r"\s+({})"), (self._rstrip, r"({})\s+")):
            for token in tokens:
                written = self._marker if token in self._signs else token
                prompt = re.sub(form.format(re.escape(written)), r"\1", prompt)
        return prompt

    def _frame(self, n_images: int) -> str:
        if self._template is None:
            images = "\n".join([self._marker] * n_images)
            return f"USER: {images}\n{_TEXT} ASSISTANT:"
        frame = self._frame_from_template(n_images)
        if frame.count(self._marker) != n_images or frame.count(_TEXT) != 1:
            raise ModelError(
                f"the model file's chat template lost the question or one of {n_images} images; "
                "it does not fit a model that sees"
            )
        return frame.removeprefix(self._bos) if self._add_bos else frame

    def _frame_from_template(self, n_images: int) -> str:
        if not self._takes_parts():
            markers = "\n".join([self._marker] * n_images)
            return self._render(f"{markers}\n{_TEXT}")
        frame = self._frame_from_image_parts(n_images)
        if frame is not None:
            return frame
        marker_part = {"type": "text", "text": self._marker}
        return self._render([*([marker_part] * n_images), _text_part()])

    def _takes_parts(self) -> bool:
        """Whether message content may be a list of parts; other templates expect a string."""
        try:
            return "'type'" not in (out := self._render([_text_part()])) and _TEXT in out
        except ModelError:
            return False

    def _frame_from_image_parts(self, n_images: int) -> str | None:
        """The prompt with markers for what the template writes for images; None if it cannot."""
        try:
            steps = [
                self._render([*([{"type": "image"}] * k), _text_part()])
                for k in range(n_images + 1)
            ]
        except ModelError:
            return None
        frame = steps[-1]
        cursor, _ = _insertion(steps[0], frame)
        for before, after in pairwise(steps):
            sign = _insertion(before, after)[1].strip()
            at = frame.find(sign, cursor) if sign else -1
            if at < 0:
                return None
            self._signs.update(_TAG.findall(sign))
            frame = frame[:at] + self._marker + frame[at + len(sign) :]
            cursor = at + len(self._marker)
        return frame

    def _render(self, content: str | list[dict[str, str]]) -> str:
        assert self._template is not None
        try:
            return self._template.render(
                messages=[{"role": "user", "content": content}],
                add_generation_prompt=True,
                tools=None,
                documents=None,
                bos_token=self._bos,
                eos_token=self._eos,
            )
        except Exception as error:  # a template is a program: it may fail in any way
            raise ModelError(
                f"the model file's chat template cannot be rendered: {_one_line(error)}"
            ) from error


def _text_part() -> dict[str, str]:
    return {"type": "text", "text": _TEXT}


def _insertion(before: str, after: str) -> tuple[int, str]:
    """Where in `after` something new stands, and what it is.

    "<|user|><|img|><|text|>" against "<|user|><|text|>" has gained "img|><|" as well as "<|img|>":
    of the ways to shift the difference, the first that is made of whole tags is taken.
    """
    start = len(_common_head(before, after))
    n_tail = len(_common_head(before[start:][::-1], after[start:][::-1]))
    end = len(after) - n_tail
    shift = 0
    while not _is_tag(after[start - shift : end - shift]):
        shift += 1
        if shift > start or after[start - shift] != after[end - shift]:
            return start, after[start:end]
    return start - shift, after[start - shift : end - shift]


def _is_tag(text: str) -> bool:
    return text.strip().startswith(("<", "[")) and text.strip().endswith((">", "]"))


def _common_head(a: str, b: str) -> str:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return a[:i]
    return min(a, b, key=len)


class _Generation(Extension):
    """``{% generation %}`` marks words for training; here they pass through."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Parses the block and returns its body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    functions: dict[str, Callable[..., Any]] = {
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    environment.globals.update(functions)
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
