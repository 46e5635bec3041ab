"""OpenAI's chat completions: messages in, dictionaries out, with llama-cpp-python's method name.

:class:`~atp_cpp.captioner.Captioner` is a :class:`ChatSession`.
"""

from __future__ import annotations

import json
import queue
import threading
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal, overload

from atp_cpp._core import Report
from atp_cpp.at_exit import wait_for
from atp_cpp.caption import Caption
from atp_cpp.chat.messages import read_messages
from atp_cpp.errors import AtpError
from atp_cpp.options.plan import PolicyLike, SamplingConfig
from atp_cpp.options.texts import brief, check_whole
from atp_cpp.session import Session

_DRAW = SamplingConfig()  # the defaults
_FINISHED = {"length": "length"}  # OpenAI calls every other reason "stop"


class ChatSession(Session):
    """A session that answers conversations."""

    @overload
    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = ...,
        max_completion_tokens: int | None = ...,
        temperature: float = ...,
        top_p: float = ...,
        top_k: int = ...,
        min_p: float = ...,
        presence_penalty: float | None = ...,
        frequency_penalty: float | None = ...,
        repeat_penalty: float | None = ...,
        seed: int | None = ...,
        stop: str | Sequence[str] | None = ...,
        response_format: Mapping[str, Any] | None = ...,
        policy: PolicyLike = ...,
        n: int | None = ...,
        logprobs: bool | None = ...,
        tools: Sequence[Any] | None = ...,
        model: str | None = ...,
        stream_options: Mapping[str, Any] | None = ...,
        allow_http: bool = ...,
        stream: Literal[False] = ...,
    ) -> dict[str, Any]: ...

    @overload
    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = ...,
        max_completion_tokens: int | None = ...,
        temperature: float = ...,
        top_p: float = ...,
        top_k: int = ...,
        min_p: float = ...,
        presence_penalty: float | None = ...,
        frequency_penalty: float | None = ...,
        repeat_penalty: float | None = ...,
        seed: int | None = ...,
        stop: str | Sequence[str] | None = ...,
        response_format: Mapping[str, Any] | None = ...,
        policy: PolicyLike = ...,
        n: int | None = ...,
        logprobs: bool | None = ...,
        tools: Sequence[Any] | None = ...,
        model: str | None = ...,
        stream_options: Mapping[str, Any] | None = ...,
        allow_http: bool = ...,
        stream: Literal[True],
    ) -> Generator[dict[str, Any], None, None]: ...

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        max_completion_tokens: int | None = None,
        temperature: float = _DRAW.temp,
        top_p: float = _DRAW.top_p,
        top_k: int = _DRAW.top_k,
        min_p: float = _DRAW.min_p,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        repeat_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        response_format: Mapping[str, Any] | None = None,
        policy: PolicyLike = None,
        n: int | None = None,
        logprobs: bool | None = None,
        tools: Sequence[Any] | None = None,
        model: str | None = None,
        stream_options: Mapping[str, Any] | None = None,
        allow_http: bool = False,
        stream: bool = False,
    ) -> dict[str, Any] | Generator[dict[str, Any], None, None]:
        """Answers a conversation, in the form of OpenAI's chat completions.

        Args:
            messages: each with a role ("system" or "developer", "user" or "assistant") and
                content, a text or a list of ``{"type": "text", "text": …}`` and, in user messages,
                ``{"type": "image_url", "image_url": {"url": …}}``; "input_text" and "input_image"
                are the same. A url is ``data:image/…;base64,…``, the base64 alone, ``file://…``, a
                path, or http(s) if allowed. The content of an assistant may be None.
            max_tokens: most tokens of the answer; 128 if not given. Where the context has less
                room, the answer ends at the end of the context, with the reason "length".
            max_completion_tokens: OpenAI's newer name of max_tokens.
            temperature: divides the logits before tokens are drawn; 0 is greedy.
            top_p: draw among the likeliest tokens that make up this probability, in (0, 1].
            top_k: draw among the k likeliest tokens; 0 for all tokens.
            min_p: draw among the tokens that have at least this share of the likeliest token's
                probability, in [0, 1].
            presence_penalty: taken once off the logit of each token that the answer contains.
            frequency_penalty: taken off the logit of a token for each time that the answer
                contains the token.
            repeat_penalty: divides the positive logits, and multiplies the negative logits, of
                tokens that the answer contains; above 0, 1 for no penalty.
            seed: seed of the random draw of tokens; 0 if not given.
            stop: a text that ends the answer, or several.
            response_format: ``{"type": "json_object"}``, with a ``"schema"`` if wanted, or OpenAI's
                ``{"type": "json_schema", "json_schema": {"schema": …}}``: the answer is JSON that
                follows the schema (unless max_tokens cuts the answer off).
            policy: cuts for this call, in place of the captioner's cuts; "none" to prune nothing.
            n: number of answers; only one answer is possible.
            logprobs: must be false; the probabilities of tokens are not kept.
            tools: must be empty; the model calls no tools.
            model: ignored, because one model is loaded.
            stream_options: ``{"include_usage": True}``: with ``stream``, a last chunk without
                choices states the numbers of tokens.
            allow_http: whether images are downloaded from http(s) urls, at most 64 MiB each (needs
                httpx).
            stream: give the answer in pieces. The messages are checked and the images opened at
                once; the model starts when the first piece is asked for. Closing the generator
                ends the answer.

        Returns:
            The completion as a dictionary; with ``stream`` a generator of its chunks.

        Raises:
            AtpError: a message or an argument cannot be used.
            ImageError: an image cannot be opened.
            ModelError: the model's chat template refuses the conversation.
            PlanError: this model cannot run the cuts.
            StageError: the stages failed; for instance, the context is too small for the prompt.
        """
        _refuse_unknown(n=n, logprobs=logprobs, tools=tools, model=model)
        with_usage = _with_usage(stream_options, stream)
        turns, pixels = read_messages(messages, allow_http=allow_http)
        plan = self.plan_of(policy)
        sampling = SamplingConfig(
            n_predict=_limit(max_tokens, max_completion_tokens),
            temp=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            presence_penalty=_or(presence_penalty, _DRAW.presence_penalty),
            frequency_penalty=_or(frequency_penalty, _DRAW.frequency_penalty),
            repeat_penalty=_or(repeat_penalty, _DRAW.repeat_penalty),
            seed=_DRAW.seed if seed is None else seed,
            stop=_stops(stop),
            json_schema=_schema(response_format),
        )
        self.render(turns)  # raises before the first chunk if the turns cannot be rendered

        def answer(on_token: Callable[[str], bool] | None = None) -> Caption:
            return self.caption_pixels(
                pixels, turns, plan=plan, sampling=sampling, on_token=on_token
            )

        about = {
            "id": f"chatcmpl-{uuid.uuid4()}",
            "created": int(time.time()),
            "model": self.model.name,
        }
        return _chunks(answer, about, with_usage) if stream else _completion(answer(), about)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """The texts that end an answer; SamplingConfig looks at each."""
    if stop is None or isinstance(stop, str):
        return (stop,) if stop else ()
    if isinstance(stop, (bytes, Mapping)) or not isinstance(stop, Sequence):
        raise AtpError(f"stop: expected a text or a list of texts, got {brief(stop)}")
    return tuple(stop)


def _limit(max_tokens: int | None, max_completion_tokens: int | None) -> int:
    """Most tokens of the answer; the two arguments are two names of one number."""
    names = {"max_tokens": max_tokens, "max_completion_tokens": max_completion_tokens}
    for name, value in names.items():
        if value is not None:
            check_whole(name, value)
    given = {n for n in names.values() if n is not None}
    if len(given) > 1:
        raise AtpError(
            f"max_tokens={max_tokens} and max_completion_tokens={max_completion_tokens} are two "
            "limits of one answer; give one of them"
        )
    return given.pop() if given else _DRAW.n_predict


def _refuse_unknown(*, n: object, logprobs: object, tools: object, model: object) -> None:
    """Raises AtpError for arguments of OpenAI's interface that this package does not support."""
    if n is not None and n != 1:
        raise AtpError(
            f"n={brief(n)}: one answer is made at a time; leave n out, or call again with a seed"
        )
    if logprobs:
        raise AtpError("logprobs: probabilities of tokens are not kept; leave logprobs out")
    if tools:
        raise AtpError("tools: the model calls no tools; leave tools out")
    if model is not None and not isinstance(model, str):
        raise AtpError(f"model: expected a name, got {type(model).__name__}")


def _with_usage(stream_options: Mapping[str, Any] | None, stream: bool) -> bool:
    if stream_options is None:
        return False
    if not stream or not isinstance(stream_options, Mapping):
        raise AtpError(
            'stream_options: expected {"include_usage": True}, together with stream=True'
        )
    return bool(stream_options.get("include_usage"))


def _usage(report: Report) -> dict[str, int]:
    return {
        "prompt_tokens": report.n_prompt,
        "completion_tokens": report.n_decoded,
        "total_tokens": report.n_prompt + report.n_decoded,
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
        "usage": _usage(caption.report),
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
    answer: Callable[[Callable[[str], bool]], Caption], about: dict[str, Any], with_usage: bool
) -> Generator[dict[str, Any], None, None]:
    """The answer in pieces, which a thread makes while they are read. Joined they are the text."""
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
        held = ""  # white space that may be the end of the answer, where it is dropped
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
        if with_usage:
            yield {**_chunk(about, {}, None), "choices": [], "usage": _usage(piece.report)}
    finally:
        ended.set()
        worker.join()
