"""A question or a conversation -> the prompt text the engine expects: one media marker per image.

The model's own chat template (the GGUF's ``tokenizer.chat_template``) is rendered as Hugging Face
does it, in a sandbox. What the template writes for an image (``<image>``,
``<|vision_start|><|image_pad|><|vision_end|>``, ``[IMG]`` …) is found by rendering with and without
images, and gives way to the media marker: the engine adds the tokens around an image itself. White
space that the template puts around an image stays. Templates that know text only get the markers as
text, before the question. A template is never guessed from a model's name.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

from atp_cpp.errors import AtpError, ModelError
from atp_cpp.options.texts import check_text
from atp_cpp.prompts.image_signs import IMAGE_SIGN, TAG, insertion
from atp_cpp.prompts.template import LLAVA_15, compile_template, one_line

if TYPE_CHECKING:
    from atp_cpp._core import ModelInfo

DEFAULT_PROMPT = "Describe the image."

# stands for the question while a template is taken apart; no template writes such characters
_TEXT = "\x02question\x03"

_log = logging.getLogger(__name__)

Message: TypeAlias = "dict[str, Any]"  # as templates take it


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        parts: its texts in order; None stands for an image.
    """

    role: str
    parts: tuple[str | None, ...]


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
            add_bos: whether the tokeniser puts the beginning-of-sequence token in front. Then the
                token that the template writes is removed, so that the prompt begins with one only.
            marker: the engine's media marker.
            nfc: whether the characters of prompts are composed (Unicode's NFC), as the model's own
                tokeniser composes them.
            lstrip: tokens of the model's tokeniser that swallow the white space on their left.
            rstrip: tokens of the model's tokeniser that swallow the white space on their right.

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
        # tags that the template writes for an image: tokens that no text of the user may contain
        self._signs: set[str] = set()
        # the sign that the template writes for an image even if no message has one; "": no sign
        self._always = ""
        # number of images -> prompt with _TEXT in place of the question
        self._frames: dict[int, str] = {}
        if not template.strip():
            _log.warning(
                "the model file has no chat template; using LLaVA-1.5's form (USER: … ASSISTANT:)"
            )
        self._template = compile_template(template if template.strip() else LLAVA_15)

    @classmethod
    def for_model(cls, info: ModelInfo) -> ChatPrompt:
        """The prompts of a loaded model.

        Args:
            info: what was loaded.

        Raises:
            ModelError: its template is not valid Jinja.
        """
        try:
            template = info.chat_template
        except UnicodeDecodeError as error:
            raise ModelError(
                f"the model's chat template is no UTF-8 text: {error}; convert the model again"
            ) from None
        return cls(
            template,
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
        check_text("the prompt", question)
        frame = self._frame_of(n_images)
        self._check(question)
        return self._as_tokenised(frame.replace(_TEXT, question.strip()))

    def render_chat(self, turns: Sequence[Turn]) -> str:
        """The prompt for a conversation, up to where the model's answer begins.

        Args:
            turns: in order; the template may refuse some orders.

        Returns:
            Text with one media marker for each image, where the template has the image.

        Raises:
            AtpError: a text holds the media marker, or what the model has in its place.
            ModelError: the template cannot be rendered with these turns; the reason it gives.
        """
        n_images = sum(turn.parts.count(None) for turn in turns)
        self._frame_of(max(n_images, 1))  # also finds the signs that the model uses for images
        for text in (part for turn in turns for part in turn.parts if part is not None):
            self._check(text)
        if self._always:
            return self._as_tokenised(self._without_bos(self._with_sign(turns, n_images)))
        failure = ModelError(
            f"the model file's chat template lost a text or one of {n_images} images; "
            "say it in one user message, images first"
        )
        for form in (self._with_parts, self._with_some_parts, self._with_marked_parts, self._plain):
            try:
                prompt = form(turns, n_images)
            except ModelError as error:
                failure = error
                continue
            if prompt is not None and self._is_whole(prompt, turns, n_images):
                return self._as_tokenised(self._without_bos(prompt))
        raise failure

    def _with_parts(self, turns: Sequence[Turn], n_images: int) -> str | None:
        return self._place(lambda k: [_in_parts(turn) for turn in _with_images(turns, k)], n_images)

    def _with_some_parts(self, turns: Sequence[Turn], n_images: int) -> str | None:
        """Text alone as a string: some templates expect it so of systems and assistants."""
        sees = [None in turn.parts for turn in turns]

        def messages(k: int) -> list[Message]:
            shown = zip(_with_images(turns, k), sees, strict=True)
            return [_in_parts(t) if has_image else _in_string(t, "") for t, has_image in shown]

        return self._place(messages, n_images)

    def _with_marked_parts(self, turns: Sequence[Turn], n_images: int) -> str:
        """For templates that take parts and know no images."""
        marked = [
            Turn(t.role, tuple(self._marker if p is None else p for p in t.parts)) for t in turns
        ]
        return self._render([_in_parts(turn) for turn in marked])

    def _plain(self, turns: Sequence[Turn], n_images: int) -> str:
        return self._render([_in_string(turn, self._marker) for turn in turns])

    def _with_sign(self, turns: Sequence[Turn], n_images: int) -> str:
        """For templates that write the sign of one image always."""
        form = _in_parts if self._takes_parts() else partial(_in_string, marker="")
        bare = self._render([form(turn) for turn in _with_images(turns, 0)])
        n_signs = bare.count(self._always)
        if n_images != 1 or n_signs != 1:
            raise ModelError(
                f"the model file's chat template writes {self._always} by itself, {n_signs} times "
                f"here, and the prompt has {n_images} images; give one image and one user message"
            )
        return bare.replace(self._always, self._marker)

    def _find_sign(self, turn: Turn) -> bool:
        """Whether the template writes a sign for an image though there is none."""
        form = _in_parts if self._takes_parts() else partial(_in_string, marker="")
        try:
            found = IMAGE_SIGN.findall(self._render([form(t) for t in _with_images([turn], 0)]))
        except ModelError:
            return False
        if len(found) == 1:
            self._always = found[0]
            self._signs.update(TAG.findall(found[0]))
        return len(found) == 1

    def _is_whole(self, prompt: str, turns: Sequence[Turn], n_images: int) -> bool:
        """Whether nothing was lost, and no list of parts was printed as such.

        Templates may shorten an assistant's message: some remove the assistant's thoughts.
        """
        texts = [part for turn in turns for part in turn.parts if part is not None]
        said = (p for t in turns if t.role != "assistant" for p in t.parts if p is not None)
        return (
            prompt.count(self._marker) == n_images
            and prompt.count("'type'") <= sum(text.count("'type'") for text in texts)
            and all(text.strip() in prompt for text in said)
        )

    def _check(self, text: str) -> None:
        """Raises AtpError if a user's text is no valid text, or contains a sign for an image."""
        check_text("the prompt", text)
        for sign, whose in ((self._marker, "engine"), *((s, "model") for s in sorted(self._signs))):
            if sign in text:
                raise AtpError(
                    f"the prompt holds {sign!r}, the {whose}'s own sign for an image; "
                    "leave it out, images are placed before the text"
                )

    def _as_tokenised(self, prompt: str) -> str:
        """Makes the changes that the model's own tokeniser makes and the engine's does not."""
        if self._nfc:
            prompt = unicodedata.normalize("NFC", prompt)
        for tokens, form in ((self._lstrip, r"\s+({})"), (self._rstrip, r"({})\s+")):
            for token in tokens:
                written = self._marker if token in self._signs else token
                prompt = re.sub(form.format(re.escape(written)), r"\1", prompt)
        return prompt

    def _without_bos(self, prompt: str) -> str:
        return prompt.removeprefix(self._bos) if self._add_bos else prompt

    def _frame_of(self, n_images: int) -> str:
        """The prompt of one turn with _TEXT in place of the question."""
        if n_images not in self._frames:
            frame = self._frame_from_template(n_images)
            if frame.count(self._marker) != n_images or frame.count(_TEXT) != 1:
                raise ModelError(
                    f"the model file's chat template lost the question or one of {n_images} "
                    "images; it does not fit a model that sees"
                )
            self._frames[n_images] = self._without_bos(frame)
        return self._frames[n_images]

    def _frame_from_template(self, n_images: int) -> str:
        turn = Turn("user", (*([None] * n_images), _TEXT))
        if self._always or self._find_sign(turn):
            return self._with_sign([turn], n_images)
        if not self._takes_parts():
            return self._plain([turn], n_images)
        try:
            frame = self._place(
                lambda k: [_in_parts(t) for t in _with_images([turn], k)],
                n_images,
                self._signs.update,
            )
        except ModelError:
            frame = None
        return self._with_marked_parts([turn], n_images) if frame is None else frame

    def _takes_parts(self) -> bool:
        """Whether message content may be a list of parts; other templates expect a string."""
        try:
            out = self._render([_in_parts(Turn("user", (_TEXT,)))])
        except ModelError:
            return False
        return "'type'" not in out and _TEXT in out

    def _place(
        self,
        messages: Callable[[int], list[Message]],
        n_images: int,
        learn: Callable[[list[str]], object] = lambda tags: None,
    ) -> str | None:
        """The prompt with markers for what the template writes for images; None if it cannot be.

        Args:
            messages: k -> the conversation with its first k images alone.
            n_images: of the whole conversation.
            learn: told the tags written for each image.

        Raises:
            ModelError: the template cannot be rendered.
        """
        steps = [self._render(messages(k)) for k in range(n_images + 1)]
        prompt, cursor = steps[-1], -1
        for before, after in pairwise(steps):
            start, sign = insertion(before, after)
            sign = sign.strip()
            cursor = start if cursor < 0 else cursor
            at = prompt.find(sign, cursor) if sign else -1
            if at < 0:
                return None
            learn(TAG.findall(sign))
            prompt = prompt[:at] + self._marker + prompt[at + len(sign) :]
            cursor = at + len(self._marker)
        return prompt

    def _render(self, messages: list[Message]) -> str:
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=True,
                tools=None,
                documents=None,
                bos_token=self._bos,
                eos_token=self._eos,
            )
        except Exception as error:  # a template is a program: it may fail in any way
            raise ModelError(
                f"the model file's chat template cannot be rendered: {one_line(error)}"
            ) from error


def _with_images(turns: Sequence[Turn], n_shown: int) -> list[Turn]:
    """The conversation with its first images alone."""
    shown = []
    for turn in turns:
        parts = []
        for part in turn.parts:
            n_shown -= part is None
            if part is not None or n_shown >= 0:
                parts.append(part)
        shown.append(Turn(turn.role, tuple(parts)))
    return shown


def _in_parts(turn: Turn) -> Message:
    parts = [{"type": "image"} if p is None else {"type": "text", "text": p} for p in turn.parts]
    return {"role": turn.role, "content": parts or [{"type": "text", "text": ""}]}


def _in_string(turn: Turn, marker: str) -> Message:
    texts = [marker if part is None else part for part in turn.parts]
    return {"role": turn.role, "content": "\n".join(texts)}
