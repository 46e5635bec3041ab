"""Schemas that are enforced, each keyword at least once."""

CAPTION = {
    "type": "object",
    "properties": {
        "caption": {"type": "string", "minLength": 3, "maxLength": 12},
        "objects": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"enum": ["cat", "dog", 'é"\\\n日']},
                    "count": {"type": "integer", "minimum": 1, "maximum": 12},
                },
                "required": ["name", "count"],
            },
            "minItems": 1,
            "maxItems": 2,
        },
        "indoor": {"type": ["boolean", "null"]},
    },
    "required": ["caption", "objects"],
    "additionalProperties": False,
}
SCHEMAS = {
    "caption": CAPTION,
    "root enum": {"enum": ["red", "green", 3, None, {"a": [1]}]},
    "const": {"const": {"k": "vö", "n": -1.5}},
    "ranges": {
        "type": "array",
        "prefixItems": [
            {"type": "integer", "minimum": -3, "maximum": 3},
            {"type": "integer", "maximum": -5},
            {"type": "integer", "exclusiveMinimum": 98.5, "exclusiveMaximum": 1002},
            {"type": "integer", "minimum": 7},
            {"type": "integer", "minimum": 0, "maximum": 0},
        ],
        "items": False,
    },
    "patterns": {
        "type": "array",
        "items": {"type": "string", "pattern": r"^(\w|[^a-y]|.){2,3}-\d+\.?$"},
        "minItems": 2,
        "maxItems": 2,
    },
    "formats": {
        "anyOf": [{"type": "string", "format": f} for f in ("date", "time", "date-time", "uuid")]
    },
    "references": {
        "$ref": "#/$defs/a_b",
        "$defs": {
            "a_b": {"type": "object", "properties": {"x": {"$ref": "#/$defs/a-b"}}},
            "a-b": {"oneOf": [{"type": "null"}, {"$ref": "#/$defs/a~1b"}]},
            "a/b": {"type": "array", "items": {"$ref": "#/$defs/a_b"}, "maxItems": 1},
        },
    },
    "map": {"type": "object", "additionalProperties": {"type": "number"}},
    "nothing": {"type": "object", "properties": {}},
    "type list": {"type": ["string", "integer"], "maxLength": 4, "minimum": 10, "maximum": 11},
}
