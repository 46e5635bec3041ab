"""Does a value fit a JSON schema? A second reading of the keywords that the grammar enforces."""

import json
import re

_TYPE = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
}
_FORMAT = {
    "date": r"\d{4}-\d\d-\d\d",
    "time": r"\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)",
    "date-time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)",
    "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
}


def fits(value, schema, root=None):
    """True when `value` is what `schema` asks for."""
    root = schema if root is None else root
    if "$ref" in schema:
        target = root
        for step in schema["$ref"].split("/")[1:]:
            step = step.replace("~1", "/")
            target = target[int(step)] if isinstance(target, list) else target[step]
        return fits(value, target, root)
    kinds = schema.get("type", list(_TYPE))
    checks = [
        any(_TYPE[kind](value) for kind in ([kinds] if isinstance(kinds, str) else kinds)),
        "const" not in schema or value == schema["const"],
        "enum" not in schema or value in schema["enum"],
        all(
            any(fits(value, choice, root) for choice in schema[key])
            for key in ("anyOf", "oneOf")
            if key in schema
        ),
        all(fits(value, choice, root) for choice in schema.get("allOf", ())),
    ]
    if isinstance(value, dict):
        checks.append(_object_fits(value, schema, root))
    if isinstance(value, list):
        checks.append(_array_fits(value, schema, root))
    if isinstance(value, str):
        checks += [
            schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9),
            "pattern" not in schema or re.search(schema["pattern"], value),
            re.fullmatch(_FORMAT.get(schema.get("format"), "(?s).*"), value),
        ]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        checks += [
            schema.get("minimum", value) <= value <= schema.get("maximum", value),
            "exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"],
            "exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"],
        ]
    return all(checks)


def _object_fits(value, schema, root):
    properties = schema.get("properties", {})
    more = schema.get("additionalProperties", True)
    return all(name in value for name in schema.get("required", ())) and all(
        fits(child, properties[name], root)
        if name in properties
        else more
        if isinstance(more, bool)
        else fits(child, more, root)
        for name, child in value.items()
    )


def _array_fits(value, schema, root):
    first = schema.get("prefixItems", ())
    items = schema.get("items", True)
    rest = value[len(first) :]
    return (
        schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9)
        and all(fits(v, s, root) for v, s in zip(value, first, strict=False))
        and (
            not rest if items is False else items is True or all(fits(v, items, root) for v in rest)
        )
    )


def distinct_keys(pairs):
    """For json.loads(object_pairs_hook=…): an object, and an error where a name stands twice."""
    assert len(dict(pairs)) == len(pairs), f"a name stands twice: {json.dumps(pairs)}"
    return dict(pairs)
