"""Questions and answers -> token ids, by the checkpoint's own processor and chat template.

The prompt is what ``ChatPrompt`` gives the engine for one turn, token for token; the answer
follows as the template writes it, with the token that ends it.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoProcessor

from atp_cpp.errors import AtpError, ModelError

LLAVA_FORM = "USER: <image>\n{question} ASSISTANT:"  # of checkpoints without a chat template


def load_processor(folder: Path) -> Any:
    """The checkpoint's processor, with what early LLaVA-1.5 folders leave to the model's config.

    Raises:
        ModelError: the folder holds none.
    """
    if not folder.is_dir():
        raise ModelError(
            f"{folder}: expected a folder with a Hugging Face checkpoint; download it first, for "
            f"instance `hf download llava-hf/llava-1.5-7b-hf --local-dir {folder}`"
        )
    try:
        processor = AutoProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{folder}: no processor of a Hugging Face checkpoint: {reason}"
        ) from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ModelError(
            f"{folder}: expected a processor of images and text, got {type(processor).__name__}"
        )
    if getattr(processor, "patch_size", 0) is None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        processor.patch_size = config["vision_config"]["patch_size"]
        processor.num_additional_image_tokens = 1  # CLIP's class token
        processor.vision_feature_select_strategy = config["vision_feature_select_strategy"]
    return processor


class Prompting:
    """Token ids of samples of one checkpoint.

    Attributes:
        n_image_tokens: of one image.
        image_token_id: the token repeated for an image.
        pad_id: fills sequences at their end.
    """

    def __init__(self, processor: Any) -> None:
        """Asks the processor how it writes an image.

        Raises:
            ModelError: it writes something else than one token repeated (tiles, row ends).
        """
        self.tokenizer = processor.tokenizer
        self._processor = processor
        self.image_token: str = processor.image_token
        self.image_token_id: int = self.tokenizer.convert_tokens_to_ids(self.image_token)
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        if eos is None:
            raise ModelError("the checkpoint's tokenizer has no end-of-sequence token")
        self._eos: int = eos
        self.pad_id: int = eos if pad is None else pad
        self.encode = lru_cache(maxsize=100_000)(self._encode)
        self._frame, self._closing = self._frames()
        self.n_image_tokens = self._count_image_tokens()

    def _frames(self) -> tuple[str, str]:
        """(prompt with the two signs below, what the template writes after the prompt)."""
        if not getattr(self._processor, "chat_template", None):
            return LLAVA_FORM.format(question=_QUESTION), f" {_ANSWER}{self.tokenizer.eos_token}"
        parts = [{"type": "image"}, {"type": "text", "text": _QUESTION}]
        user = {"role": "user", "content": parts}
        reply = {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}
        prompt = self._render([user], add_generation_prompt=True)
        whole = self._render([user, reply], add_generation_prompt=False)
        spaced = prompt if prompt[-1:].isspace() else prompt + " "
        closing = (
            whole[len(prompt) :] if whole.startswith(prompt) else spaced[len(prompt) :] + _ANSWER
        )
        closing = closing.rstrip()
        if closing.endswith(_ANSWER):  # a template that does not say where an answer ends
            closing += self.tokenizer.eos_token
        if prompt.count(_QUESTION) != 1 or prompt.count(self.image_token) != 1:
            raise ModelError(
                f"the checkpoint's chat template lost the image or the question; it gave {prompt!r}"
            )
        return prompt, closing

    def _render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        text: str = self._processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text

    def prompt(self, question: str) -> str:
        """The prompt for one question about one image; ends where the answer begins."""
        return self._frame.replace(_QUESTION, question.strip())

    def _encode(self, question: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(prompt, answer with its end), the image being one token here.

        Raises:
            AtpError: question or answer hold the image token.
        """
        if self.image_token in question or self.image_token in answer:
            raise AtpError(
                f"expected no {self.image_token} in questions and answers, got "
                f"{question!r}, {answer!r}; images are placed before the text"
            )
        prompt = self.prompt(question)
        reply = self._closing.replace(_ANSWER, answer.strip())
        head = self._ids(prompt)
        both = self._ids(prompt + reply)
        tail = both[len(head) :]
        if both[: len(head)] != head:  # pieces join at the border: at inference they do not
            tail = self._ids(reply, bare=True)
        return tuple(head), tuple(tail)

    def _ids(self, text: str, *, bare: bool = False) -> list[int]:
        # as the processor's own apply_chat_template does it: never two beginnings of a sequence
        bos = self.tokenizer.bos_token
        special = not bare and not (bos is not None and text.startswith(bos))
        ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def repeat_image(self, head: tuple[int, ...]) -> list[int]:
        """A prompt with its image token repeated as the processor does it."""
        at = head.index(self.image_token_id)
        return [*head[:at], *([self.image_token_id] * self.n_image_tokens), *head[at + 1 :]]

    def _count_image_tokens(self) -> int:
        text = self.prompt("?")
        head, _ = self.encode("?", "!")
        bos = self.tokenizer.bos_token
        out = self._processor(
            images=[Image.new("RGB", (64, 64))],
            text=text,
            add_special_tokens=not (bos is not None and text.startswith(bos)),
        )
        theirs = list(out["input_ids"][0])
        self.n_image_tokens = theirs.count(self.image_token_id)
        if self.repeat_image(head) != theirs:
            raise ModelError(
                f"expected a processor that repeats {self.image_token} for an image and nothing "
                f"else, as LLaVA-1.5's does; {type(self._processor).__name__} writes other tokens"
            )
        return self.n_image_tokens


_QUESTION = "\x02question\x03"
_ANSWER = "\x02answer\x03"
