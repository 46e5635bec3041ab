"""OpenAI's chat completions: their messages in, their dictionaries out, as llama-cpp-python has it.

:func:`create_chat_completion` is a method of :class:`~atp_cpp.captioner.Captioner`.
"""

from __future__ import annotations

import json
import queue
import threading
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from atp_cpp.at_exit import wait_for
from atp_cpp.chat_messages import read_messages
from atp_cpp.config import PolicyLike, SamplingConfig, parse_plan
from atp_cpp.errors import AtpError

if TYPE_CHECKING:
    from collections.abc import Callable

    from atp_cpp.caption import Caption
    from atp_cpp.captioner import Captioner

_DRAW = SamplingConfig()  # its defaults
_FINISHED = {"length": "length"}  # all else is a stop, in OpenAI's words


@overload
def create_chat_completion(
    captioner: Captioner,
    messages: Sequence[Mapping[str, Any]],
    *,
    max_tokens: int | None = ...,
    temperature: float = ...,
    top_p: float = ...,
    top_k: int = ...,
    min_p: float = ...,
    seed: int | None = ...,
    stop: str | Sequence[str] | None = ...,
    response_format: Mapping[str, Any] | None = ...,
    policy: PolicyLike = ...,
    allow_http: bool = ...,
    stream: Literal[False] = ...,
) -> dict[str, Any]: ...


@overload
def create_chat_completion(
    captioner: Captioner,
    messages: Sequence[Mapping[str, Any]],
    *,
    max_tokens: int | None = ...,
    temperature: float = ...,
    top_p: float = ...,
    top_k: int = ...,
    min_p: float = ...,
    seed: int | None = ...,
    stop: str | Sequence[str] | None = ...,
    response_format: Mapping[str, Any] | None = ...,
    policy: PolicyLike = ...,
    allow_http: bool = ...,
    stream: Literal[True],
) -> Generator[dict[str, Any], None, None]: ...


def create_chat_completion(
    captioner: Captioner,
    messages: Sequence[Mapping[str, Any]],
    *,
    max_tokens: int | None = None,
    temperature: float = _DRAW.temp,
    top_p: float = _DRAW.top_p,
    top_k: int = _DRAW.top_k,
    min_p: float = _DRAW.min_p,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    response_format: Mapping[str, Any] | None = None,
    policy: PolicyLike = None,
    allow_http: bool = False,
    stream: bool = False,
) -> dict[str, Any] | Generator[dict[str, Any], None, None]:
    """Answers a conversation, in the form of OpenAI's chat completions.

    Args:
        captioner: the model; as a method, ``self``.
        messages: each with a role ("system", "user" or "assistant") and content, a text or a list
            of ``{"type": "text", "text": …}`` and, in user messages, ``{"type": "image_url",
            "image_url": {"url": …}}``. A url is ``data:image/…;base64,…``, ``file://…``, a path, or
            http(s) if allowed.
        max_tokens: at most this many tokens of answer; 128 if not given.
        temperature: 0 is greedy.
        top_p: see SamplingConfig, here and below.
        top_k: likewise.
        min_p: likewise.
        seed: of the draw; 0 if not given.
        stop: a text that ends the answer, or several.
        response_format: ``{"type": "json_object"}``, with a ``"schema"`` if wanted, or OpenAI's
            ``{"type": "json_schema", "json_schema": {"schema": …}}``: the answer is such JSON
            (unless max_tokens cuts it off).
        policy: cuts for this call; see Captioner.caption.
        allow_http: whether http(s) urls are downloaded (needs httpx): at most 64 MiB.
        stream: give the answer in pieces. The messages are checked and images opened at once; the
            model starts when the first piece is asked for. Closing the generator ends the answer.

    Returns:
        The completion as a dictionary; with ``stream`` a generator of its chunks.

    Raises:
        AtpError: a message or an argument that cannot be.
        ImageError: an image that cannot be opened.
        ModelError: the model's chat template refuses the conversation.
        PlanError: cuts that this model cannot run.
        StageError: for instance a context too small for the prompt.
    """
    turns, pixels = read_messages(messages, allow_http=allow_http)
    plan = captioner.plan if policy is None else captioner.settle_plan(parse_plan(policy))
    sampling = SamplingConfig(
        n_predict=_DRAW.n_predict if max_tokens is None else max_tokens,
        temp=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=_DRAW.seed if seed is None else seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        json_schema=_schema(response_format),
    )
    captioner.render(turns)  # refuses what cannot be rendered, before anything is streamed

    def answer(on_token: Callable[[str], bool] | None = None) -> Caption:
        return captioner.caption_pixels(
            pixels, turns, plan=plan, sampling=sampling, on_token=on_token
        )

    about = {
        "id": f"chatcmpl-{uuid.uuid4()}",
        "created": int(time.time()),
        "model": captioner.model.name,
    }
    return _chunks(answer, about) if stream else _completion(answer(), about)


def _schema(response_format: Mapping[str, Any] | None) -> str:
    """The JSON schema that a response_format asks for, as text; "" for none."""
    if response_format is None:
        return ""
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return ""
    if kind == "json_object":
        schema = response_format.get("schema") or {"type": "object"}
    elif kind == "json_schema":
        inner = response_format.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if schema is None:
            raise AtpError(
                'response_format: expected {"type": "json_schema", "json_schema": {"schema": …}}, '
                "got no schema"
            )
    else:
        raise AtpError(
            "response_format: expected a dictionary whose type is text, json_object or "
            f"json_schema, got {str(response_format)[:80]}"
        )
    try:
        return json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise AtpError(f"response_format: the schema is not JSON: {error}") from None


def _completion(caption: Caption, about: dict[str, Any]) -> dict[str, Any]:
    report = caption.report
    return {
        "id": about["id"],
        "object": "chat.completion",
        "created": about["created"],
        "model": about["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": caption.text},
                "logprobs": None,
                "finish_reason": _FINISHED.get(caption.finish_reason, "stop"),
            }
        ],
        "usage": {
            "prompt_tokens": report.n_prompt,
            "completion_tokens": report.n_decoded,
            "total_tokens": report.n_prompt + report.n_decoded,
        },
    }


def _chunk(about: dict[str, Any], delta: dict[str, str], reason: str | None) -> dict[str, Any]:
    return {
        "id": about["id"],
        "object": "chat.completion.chunk",
        "created": about["created"],
        "model": about["model"],
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}],
    }


def _chunks(
    answer: Callable[[Callable[[str], bool]], Caption], about: dict[str, Any]
) -> Generator[dict[str, Any], None, None]:
    """The answer in pieces, made by a thread while they are read; joined they are its text."""
    pieces: queue.SimpleQueue[str | Caption | BaseException] = queue.SimpleQueue()
    ended = threading.Event()

    def on_token(piece: str) -> bool:
        pieces.put(piece)
        return not ended.is_set()

    def run() -> None:
        try:
            pieces.put(answer(on_token))
        except BaseException as error:
            pieces.put(error)

    worker = threading.Thread(target=run, name="atp-chat", daemon=True)
    worker.start()
    wait_for(worker)
    try:
        yield _chunk(about, {"role": "assistant"}, None)
        held = ""  # white space, which the whole answer has none of at its ends
        begun = False
        while isinstance(piece := pieces.get(), str):
            text = held + piece if begun else piece.lstrip()
            shown = text.rstrip()
            held = text[len(shown) :]
            if shown:
                begun = True
                yield _chunk(about, {"content": shown}, None)
        if isinstance(piece, BaseException):
            raise piece
        yield _chunk(about, {}, _FINISHED.get(piece.finish_reason, "stop"))
    finally:
        ended.set()
        worker.join()
