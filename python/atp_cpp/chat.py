"""OpenAI's chat completions: their messages in, their dictionaries out, as llama-cpp-python has it.

:meth:`atp_cpp.Captioner.create_chat_completion` begins here.
"""

from __future__ import annotations

import json
import queue
import threading
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from atp_cpp.caption import Caption
from atp_cpp.chat_messages import read_messages
from atp_cpp.config import PolicyLike, SamplingConfig
from atp_cpp.errors import AtpError
from atp_cpp.session import Session

_Answer: TypeAlias = Callable[[Callable[[str], bool] | None], Caption]  # on_token -> the answer
_DRAW = SamplingConfig()  # its defaults
_FINISHED = {"length": "length"}  # all else is a stop, in OpenAI's words


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """The arguments of ``Captioner.create_chat_completion``; see there."""

    messages: Sequence[Mapping[str, Any]]
    max_tokens: int | None = None
    temperature: float = _DRAW.temp
    top_p: float = _DRAW.top_p
    top_k: int = _DRAW.top_k
    min_p: float = _DRAW.min_p
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    response_format: Mapping[str, Any] | None = None
    policy: PolicyLike = None
    allow_http: bool = False

    def sampling(self) -> SamplingConfig:
        """How the answer is drawn; AtpError if an argument cannot be."""
        return SamplingConfig(
            n_predict=_DRAW.n_predict if self.max_tokens is None else self.max_tokens,
            temp=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=_DRAW.seed if self.seed is None else self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            json_schema=_schema(self.response_format),
        )


def complete(session: Session, request: ChatRequest) -> dict[str, Any]:
    """The completion as a dictionary; raises what ``Captioner.create_chat_completion`` does."""
    return _completion(_answer_of(session, request)(None), _about(session))


def stream(session: Session, request: ChatRequest) -> Generator[dict[str, Any], None, None]:
    """The completion in chunks. The request is checked, and its images opened, before the first."""
    return _chunks(_answer_of(session, request), _about(session))


def _answer_of(session: Session, request: ChatRequest) -> _Answer:
    """Checks a request and opens its images; what comes back makes the answer when called."""
    turns, pixels = read_messages(request.messages, allow_http=request.allow_http)
    plan = session.plan_of(request.policy)
    sampling = request.sampling()
    session.render(turns)  # refuses what cannot be rendered, before anything is streamed

    def answer(on_token: Callable[[str], bool] | None) -> Caption:
        return session.caption_pixels(
            pixels, turns, plan=plan, sampling=sampling, on_token=on_token
        )

    return answer


def _about(session: Session) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4()}",
        "created": int(time.time()),
        "model": session.model.name,
    }


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


def _chunks(answer: _Answer, about: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
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
