"""A JSON schema -> the grammar of its values. Refuses rules that the grammar would not enforce.

llama.cpp's converter ignores keywords that it does not know; a user would notice that only in the
results. This module compares a schema with the list of keywords that are enforced, and writes the
schema anew: all references point to one place, each type stands alone, ranges of integers have both
ends, and patterns cannot leave a JSON string. The list is in ``docs/guide/json-answers.md``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NoReturn, TypeAlias

from atp_cpp._core import json_schema_to_grammar
from atp_cpp.errors import AtpError
from atp_cpp.options.json_schema_pattern import inside_a_string

Node: TypeAlias = dict[str, Any]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 64  # nested brackets
MAX_NODES = 5000  # schemas inside the schema
MAX_LEVELS = 1000  # nested schemas, references followed; the converter recurses for each level
MAX_OPTIONAL = 128  # optional properties; the converter's work grows with the third power
MAX_COUNT = 2000  # items of an array or characters of a text; llama.cpp's grammar counts no further
MAX_NAME = 256  # bytes of a property's name
INTEGER_END = 10**15  # integers without a range have at most 16 digits

_NOTES = frozenset(
    ("$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default")
) | {"example", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"}
_RANGE = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_FORMATS = ("date", "time", "date-time", "uuid")
_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_SHAPED_BY = {
    "object": ("properties", "additionalProperties", "required"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
}


@lru_cache(maxsize=16)
def grammar_of(schema: str) -> str:
    """The grammar (GBNF) of a JSON schema, given as JSON text.

    Raises:
        AtpError: the text is no JSON or no schema, or a keyword is not enforced. The message names
            the place and what to do.
    """
    rewritten = _Rewriter(_parse(schema)).run()
    try:
        text = json.dumps(rewritten, allow_nan=False)
    except ValueError:
        raise AtpError("JSON schema: a number in it is too large") from None
    return json_schema_to_grammar(text)


def _parse(schema: str) -> Any:
    size = len(schema.encode("utf-8", "replace"))
    if size > MAX_BYTES:
        raise AtpError(f"JSON schema: has {size} bytes; at most {MAX_BYTES} are taken")
    try:
        root = json.loads(schema, parse_constant=_no_constant)
    except RecursionError:
        raise AtpError(f"JSON schema: brackets more than {MAX_DEPTH} deep") from None
    except ValueError as error:
        raise AtpError(f"JSON schema: is no JSON: {error}") from None
    if _depth(root) > MAX_DEPTH:
        raise AtpError(f"JSON schema: brackets more than {MAX_DEPTH} deep")
    return root


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            child
            for node in level
            for child in (
                node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
            )
            if isinstance(child, (dict, list))
        ]
    return depth


class _Rewriter:
    """Reads one schema and writes a schema that the converter can read.

    Args:
        root: the schema, as json.loads gives it.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._n_nodes = 0
        self._targets: dict[str, tuple[str, Any, str]] = {}  # $ref -> our name, schema, path
        self._todo: list[str] = []

    def run(self) -> Node:
        schema = self._node(self._root, "#")
        levels = _depth(schema)
        written: Node = {}
        while self._todo:
            name, target, path = self._targets[self._todo.pop()]
            written[name] = self._node(target, path)
            levels += _depth(written[name])
        self._check_chains(written)
        if levels > MAX_LEVELS:
            raise AtpError(
                f"JSON schema: its references lead {levels} levels deep, at most {MAX_LEVELS} are "
                "taken; use fewer of them"
            )
        return {**schema, "$atp": written} if written else schema

    def _check_chains(self, written: Node) -> None:
        """Refuses a chain of references that leads back to its own beginning."""
        for name in written:
            seen, at = {name}, written[name]
            while "$ref" in at:
                name = at["$ref"].rpartition("/")[2]
                if name in seen:
                    raise AtpError("JSON schema: a $ref leads to nothing but itself")
                seen.add(name)
                at = written[name]

    def _node(self, node: Any, path: str) -> Node:
        self._n_nodes += 1
        if self._n_nodes > MAX_NODES:
            raise AtpError(f"JSON schema: holds more than {MAX_NODES} schemas; write a smaller one")
        if node is True:
            return {}
        if not isinstance(node, dict):
            _fail(path, f"expected a schema, which is an object, got {_short(node)}")
        if "$ref" in node:
            _only(node, ("$ref",), path)
            return {"$ref": self._reference(node["$ref"], path)}
        for key in ("anyOf", "oneOf", "allOf"):
            if key in node:
                _only(node, (key,), path)
                return self._choice(key, node[key], f"{path}/{key}")
        for key in ("const", "enum"):
            if key in node:
                _only(node, (key, "type"), path)
                return self._values(key, node[key], path)
        kinds = self._types(node, path)
        if len(kinds) == 1:
            return self._typed(kinds[0], node, path)
        return {"anyOf": [self._typed(kind, node, path, kinds) for kind in kinds]}

    def _types(self, node: Node, path: str) -> list[str]:
        given = node.get("type")
        if given is None:
            shaped = [kind for kind, keys in _SHAPED_BY.items() if any(key in node for key in keys)]
            if len(shaped) > 1 or any(key in node for key in _RANGE):
                _fail(path, "has no type; add one")
            return shaped or ["any"]
        kinds = given if isinstance(given, list) else [given]
        if not kinds or any(not isinstance(kind, str) or kind not in _TYPES for kind in kinds):
            _fail(path, f"type {_short(given)}; there are {', '.join(_TYPES)}")
        return list(dict.fromkeys(kinds))

    def _typed(self, kind: str, node: Node, path: str, kinds: Iterable[str] = ()) -> Node:
        """One type of a node, with the keywords of this type; other types' keywords are ignored."""
        write: Callable[[Node, str], Node] | None = {
            "object": self._object,
            "array": self._array,
            "string": _string,
            "integer": _integer,
        }.get(kind)
        own = {*_SHAPED_BY.get(kind, ()), *(_RANGE if kind == "integer" else ()), "type"}
        others = {key for other in kinds for key in _SHAPED_BY.get(other, ()) if other != kind}
        others |= set(_RANGE) if "integer" in kinds and "number" not in kinds else set()
        part = {key: value for key, value in node.items() if key not in others - own}
        _only(part, tuple(own), path)
        if kind == "any":
            return {}
        return {"type": kind, **(write(node, path) if write else {})}

    def _reference(self, ref: Any, path: str) -> str:
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            _fail(path, f"$ref {_short(ref)}; only references into the schema itself (#/…) work")
        if ref not in self._targets:
            target: Any = self._root
            for step in ref.split("/")[1:]:
                key = step.replace("~1", "/").replace("~0", "~")
                if isinstance(target, dict) and key in target:
                    target = target[key]
                elif isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                    target = target[int(key)]
                else:
                    _fail(path, f"$ref {_short(ref)}: there is no {_short(key)}")
            self._targets[ref] = (f"r{len(self._targets)}", target, ref)
            self._todo.append(ref)
        return f"#/$atp/{self._targets[ref][0]}"

    def _choice(self, key: str, choices: Any, path: str) -> Node:
        if not isinstance(choices, list) or not choices:
            _fail(path, "expected a list of schemas")
        if key == "allOf" and len(choices) > 1:
            _fail(path, "several schemas at once are not enforced; write them as one")
        nodes = [self._node(choice, f"{path}/{i}") for i, choice in enumerate(choices)]
        return nodes[0] if len(nodes) == 1 else {"anyOf": nodes}

    def _values(self, key: str, values: Any, path: str) -> Node:
        if key == "enum" and (not isinstance(values, list) or not values):
            _fail(path, "enum must be a list of values")
        return {key: values}

    def _object(self, node: Node, path: str) -> Node:
        properties = node.get("properties", {})
        required = node.get("required", [])
        more = node.get("additionalProperties", "properties" not in node)
        if not isinstance(properties, dict) or not isinstance(required, list):
            _fail(path, "properties must be an object, and required a list of names")
        for name in required:
            if not isinstance(name, str) or name not in properties:
                _fail(path, f"requires {_short(name)}, which is not among its properties; add it")
        if len(properties) - len(set(required)) > MAX_OPTIONAL:
            _fail(path, f"more than {MAX_OPTIONAL} optional properties; require some of them")
        for name in properties:
            if not 0 < len(name.encode("utf-8", "replace")) <= MAX_NAME or name == "*":
                _fail(path, f"a property cannot be called {_short(name)}")
        written = {
            name: self._node(child, f"{path}/properties/{name}")
            for name, child in properties.items()
        }
        if not isinstance(more, bool):
            more = self._node(more, f"{path}/additionalProperties")
        if properties:
            more = False  # still follows the schema; the converter's free names can break quotes
        return {"properties": written, "required": required, "additionalProperties": more}

    def _array(self, node: Node, path: str) -> Node:
        least, most = _counts(node, "minItems", "maxItems", path)
        items, first = node.get("items", True), node.get("prefixItems")
        if isinstance(items, list):
            first, items = items, False
        if first is None:
            limits = {"minItems": least} | ({} if most is None else {"maxItems": most})
            return {"items": self._node(items, f"{path}/items"), **limits}
        if not isinstance(first, list) or not first:
            _fail(path, "prefixItems must be a list of schemas")
        if items is not False or least > len(first) or (most is not None and most < len(first)):
            _fail(path, 'prefixItems are enforced as the whole array; add "items": false')
        nodes = [self._node(item, f"{path}/prefixItems/{i}") for i, item in enumerate(first)]
        return {"prefixItems": nodes}


def _string(node: Node, path: str) -> Node:
    least, most = _counts(node, "minLength", "maxLength", path)
    counted = least > 0 or most is not None
    known = node.get("format") in _FORMATS
    if known + ("pattern" in node) + counted > 1:
        _fail(path, "of pattern, format and length only one is enforced; leave the others out")
    if "pattern" in node:
        if not isinstance(node["pattern"], str):
            _fail(path, "pattern must be a text")
        try:
            return {"pattern": inside_a_string(node["pattern"])}
        except ValueError as error:
            _fail(path, f"pattern {_short(node['pattern'])}: {error}")
    if known:
        return {"format": node["format"]}
    return {"minLength": least} | ({} if most is None else {"maxLength": most})


def _integer(node: Node, path: str) -> Node:
    limits = {key: node[key] for key in _RANGE if key in node}
    for key, value in limits.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            _fail(path, f"{key} must be a number, got {_short(value)}")
        if not -INTEGER_END < value < INTEGER_END:
            _fail(path, f"{key} must lie within ±10^15, got {_short(value)}")
    if not limits:
        return {}
    low = max(
        math.ceil(limits.get("minimum", 1 - INTEGER_END)),
        math.floor(limits.get("exclusiveMinimum", -INTEGER_END)) + 1,
    )
    high = min(
        math.floor(limits.get("maximum", INTEGER_END - 1)),
        math.ceil(limits.get("exclusiveMaximum", INTEGER_END)) - 1,
    )
    if low > high:
        _fail(path, f"no integer is at least {low} and at most {high}")
    return {"minimum": low, "maximum": high}


def _counts(node: Node, least: str, most: str, path: str) -> tuple[int, int | None]:
    counts = {key: node[key] for key in (least, most) if key in node}
    for key, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
            _fail(path, f"{key} must be a whole number up to {MAX_COUNT}, got {_short(value)}")
    if counts.get(least, 0) > counts.get(most, MAX_COUNT):
        _fail(path, f"{least} is {counts[least]} and {most} {counts[most]}")
    return counts.get(least, 0), counts.get(most)


def _only(node: Node, keys: tuple[str, ...], path: str) -> None:
    for key, value in node.items():
        harmless = key in _NOTES or (key == "format" and value not in _FORMATS)
        if key not in keys and not harmless:
            beside = f" beside {'/'.join(k for k in keys if k in node)}" if keys else ""
            _fail(
                path, f"{_short(key)} is not enforced{beside}; leave it out and check it afterwards"
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else text[:57] + "…"


def _fail(path: str, what: str) -> NoReturn:
    shown = path.encode("ascii", "backslashreplace").decode().replace("\n", " ")
    raise AtpError(f"JSON schema, {shown if len(shown) < 200 else shown[:197] + '…'}: {what}")
