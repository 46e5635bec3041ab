"""OpenAI's messages -> turns for the prompt, and the images in the messages."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from atp_cpp.errors import AtpError
from atp_cpp.images.load import Pixels
from atp_cpp.images.urls import load_url
from atp_cpp.options.texts import brief
from atp_cpp.prompts.prompt import Turn

__all__ = ["read_messages"]

_ROLES = ("system", "user", "assistant")
_SAME = {"developer": "system"}  # "developer" is OpenAI's newer name of "system"
_TEXTS = ("text", "input_text", "output_text")
_IMAGES = ("image_url", "input_image")


def read_messages(
    messages: Sequence[Mapping[str, Any]], *, allow_http: bool = False
) -> tuple[list[Turn], list[Pixels]]:
    """Reads a conversation and opens its images.

    Args:
        messages: see ``create_chat_completion``.
        allow_http: whether images may come from the web.

    Returns:
        The turns, and the images in the order of the turns, uint8 [h, w, 3] each.

    Raises:
        AtpError: a message cannot be read; the text names the message and what was expected.
        ImageError: an image cannot be opened.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise AtpError(
            'messages: expected a list of {"role": …, "content": …}, got '
            f"{type(messages).__name__}"
        )
    if not messages:
        raise AtpError("messages: expected at least one message, got an empty list")
    read = [_read(f"messages[{i}]", message) for i, message in enumerate(messages)]
    turns = [turn for turn, _ in read]
    urls = [url for _, of_turn in read for url in of_turn]
    return turns, [load_url(url, allow_http=allow_http) for url in urls]


def _read(where: str, message: Any) -> tuple[Turn, list[str]]:
    """The turn of one message, and the urls of the images in the message."""
    if not isinstance(message, Mapping):
        raise AtpError(
            f'{where}: expected {{"role": …, "content": …}}, got {type(message).__name__}'
        )
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or (role := _SAME.get(role, role)) not in _ROLES:
        raise AtpError(f"{where}: expected role {', '.join((*_ROLES, *_SAME))}, got {brief(role)}")
    if message.get("tool_calls"):
        raise AtpError(f"{where}: tools cannot be called here; leave tool_calls out")
    if content is None and role == "assistant" and "content" in message:
        content = ""
    if isinstance(content, str):
        return Turn(role, (content,)), []
    if isinstance(content, (bytes, Mapping)) or not isinstance(content, Sequence) or not content:
        raise AtpError(
            f"{where}: expected content as a text or a list of parts, got {_kind(content)}"
        )
    parts: list[str | None] = []
    urls: list[str] = []
    for j, part in enumerate(content):
        text, url = _read_part(f"{where}.content[{j}]", part)
        if url is not None and role != "user":
            raise AtpError(f"{where}: an image in a message of the {role}; only users show images")
        parts.append(text)
        urls += [] if url is None else [url]
    return Turn(role, tuple(parts)), urls


def _read_part(where: str, part: Any) -> tuple[str | None, str | None]:
    """One part of a message: (text, None) or (None, url)."""
    if isinstance(part, str):
        return part, None
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _TEXTS and isinstance(part.get("text"), str):
        return part["text"], None
    if kind in _IMAGES:
        named = part.get("image_url")
        url = named.get("url") if isinstance(named, Mapping) else named
        if isinstance(url, os.PathLike):
            url = os.fspath(url)
        if isinstance(url, str) and url:
            return None, url
    if kind == "input_image" and part.get("file_id"):
        raise AtpError(f"{where}: there are no uploaded files here; give image_url, not file_id")
    raise AtpError(
        f'{where}: expected {{"type": "text", "text": …}} or {{"type": "image_url", "image_url": '
        f'{{"url": …}}}}, got {_kind(part)}'
    )


def _kind(value: Any) -> str:
    """The kind of a value, in few words."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{brief(key)}: …" for key in list(value)[:6]) + "}"
    return "an empty list" if value == [] else type(value).__name__
