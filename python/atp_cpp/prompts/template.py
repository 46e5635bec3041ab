"""Chat templates as Hugging Face renders them: Jinja in a sandbox, with its extensions."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from atp_cpp.errors import ModelError

__all__ = ["LLAVA_15", "compile_template", "one_line"]

# for models without one: LLaVA-1.5's form, with a sign for images that no text will hold
LLAVA_15 = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<\x02image\x03>\n' }}"
    "{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def compile_template(source: str) -> jinja2.Template:
    """Compiles a model's template.

    Raises:
        ModelError: it is not valid Jinja.
    """
    try:
        return _environment().from_string(source)
    except jinja2.TemplateError as error:
        raise ModelError(
            f"the model file's chat template is not valid Jinja: {one_line(error)}; "
            "convert the model again"
        ) from error


def one_line(error: Exception) -> str:
    """The text of an exception."""
    return " ".join(str(error).split()) or type(error).__name__


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
