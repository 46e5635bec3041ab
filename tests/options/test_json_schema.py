"""Schema -> grammar: what is taken, what is refused in which words, and nothing is fatal."""

import copy
import json
import random
import threading

import pytest

from atp_cpp import _core
from atp_cpp.errors import AtpError
from atp_cpp.options.json_schema import grammar_of
from atp_cpp.options.plan import SamplingConfig
from support.json_schemas import SCHEMAS
from support.mutations import mutated
from support.schema_fits import fits


@pytest.mark.parametrize("name", SCHEMAS)
def test_these_are_taken(name):
    text = json.dumps(SCHEMAS[name])
    options = SamplingConfig(json_schema=text).engine_options()
    assert options["grammar"] == grammar_of(text)
    assert "root ::= " in options["grammar"]


def nested(n, node):
    for _ in range(n):
        node = {"type": "array", "items": node}
    return node


def many_references(n):
    defs = {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(n)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{n}": {"type": "null"}}}


def doubled(n):
    node = {"type": "string"}
    for _ in range(n):
        node = {"type": ["object", "array"], "properties": {"a": node}, "items": node}
    return node


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("{", "is no JSON"),
        ('{"type": NaN}', "is no JSON"),
        ("[]", "JSON schema, #: expected a schema"),
        ("false", "expected a schema"),
        ('{"const": 1e999}', "too large"),
        ({"type": "text"}, 'type "text"; there are object'),
        ({"type": []}, "there are object"),
        ({"type": {}}, "there are object"),
        ({"$ref": "https://example.org/schema.json"}, "only references into the schema itself"),
        ({"$ref": "other.json#/a"}, "only references into the schema itself"),
        ({"$ref": "#/$defs/gone"}, 'there is no "$defs"'),
        ({"$ref": 5}, "only references"),
        ({"$ref": "#"}, "leads to nothing but itself"),
        ({"$ref": "#/a", "a": {"$ref": "#/b"}, "b": {"$ref": "#/a"}}, "is not enforced"),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}},
            "leads to nothing but itself",
        ),
        ({"type": "number", "minimum": 1}, '"minimum" is not enforced beside type'),
        ({"minimum": 1}, "has no type"),
        ({"properties": {}, "minLength": 3}, "has no type"),
        ({"type": "string", "minLength": 2001}, "minLength must be a whole number up to 2000"),
        ({"type": "string", "maxLength": 1e6}, "maxLength must be a whole number"),
        ({"type": "array", "minItems": 4, "maxItems": 3}, "minItems is 4 and maxItems 3"),
        ({"type": "array", "minItems": -1}, "minItems must be a whole number"),
        ({"type": "array", "uniqueItems": True}, '"uniqueItems" is not enforced'),
        ({"type": "array", "prefixItems": [{}]}, 'add "items": false'),
        ({"type": "integer", "multipleOf": 5}, '"multipleOf" is not enforced'),
        ({"type": "integer", "minimum": 5, "exclusiveMaximum": 5}, "no integer is at least 5"),
        ({"type": "integer", "minimum": 10**15}, "within ±10^15"),
        ({"type": "integer", "minimum": "3"}, "minimum must be a number"),
        ({"type": "object", "required": ["a"]}, 'requires "a"'),
        ({"type": "object", "properties": {"a": {}}, "required": [[]]}, "requires []"),
        ({"type": "object", "properties": [], "required": []}, "properties must be an object"),
        ({"type": "object", "properties": {"": {}}}, 'cannot be called ""'),
        ({"type": "object", "properties": {"*": {}}}, 'cannot be called "*"'),
        ({"type": "object", "properties": {"x" * 257: {}}}, "cannot be called"),
        ({"type": "object", "properties": {"日" * 90: {}}}, "cannot be called"),
        ({"type": "object", "properties": {str(i): {} for i in range(129)}}, "128 optional"),
        ({"type": "object", "patternProperties": {"a": {}}}, '"patternProperties" is not enforced'),
        ({"allOf": [{"type": "object"}, {"required": []}]}, "write them as one"),
        ({"not": {}}, '"not" is not enforced'),
        ({"anyOf": []}, "expected a list of schemas"),
        ({"anyOf": [{"anyOf": {}}]}, "JSON schema, #/anyOf/0/anyOf: expected a list"),
        ({"enum": []}, "enum must be a list of values"),
        ({"enum": [1], "const": 1}, "is not enforced"),
        ({"type": "string", "format": "date", "maxLength": 3}, "only one is enforced"),
        ({"type": "string", "pattern": "^a$", "minLength": 1}, "only one is enforced"),
        ({"type": "string", "pattern": "a"}, "write both"),
        ({"type": "string", "pattern": "^a\\$"}, "write both"),
        ({"type": "string", "pattern": '^"$'}, "cannot stand in it"),
        ({"type": "string", "pattern": "^\\\\$"}, "cannot stand in it"),
        ({"type": "string", "pattern": "^\\n$"}, "escape \\n"),
        ({"type": "string", "pattern": "^(?=a)a$"}, "is not supported"),
        ({"type": "string", "pattern": "^(a$"}, "a bracket stays open"),
        ({"type": "string", "pattern": "^a)$"}, "brackets do not fit"),
        ({"type": "string", "pattern": "^[a$"}, "stays open"),
        ({"type": "string", "pattern": "^[b-a]$"}, "no first and last"),
        ({"type": "string", "pattern": "^*$"}, "nothing for * to repeat"),
        ({"type": "string", "pattern": "^a**$"}, "nothing for * to repeat"),
        ({"type": "string", "pattern": "^a^$"}, "in its middle"),
        ({"type": "string", "pattern": "^(a)\\1$"}, "escape \\1"),
        ({"type": "string", "pattern": "^a{0,1000000}$"}, "grammar, line"),
        ({"type": "string", "pattern": "^" + "(" * 60 + ")" * 60 + "$"}, "too deep"),
        (nested(70, {}), "brackets more than 64 deep"),
        ("[" * 100000 + "]" * 100000, "brackets more than 64 deep"),
        ('{"a": "' + "x" * 2**20 + '"}', "at most 262144"),
        (many_references(1000), "levels deep"),
        ({"anyOf": [{"const": i} for i in range(6000)]}, "more than 5000 schemas"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {}]}}}, "itself"),
    ],
)
def test_these_are_refused(schema, says):
    text = schema if isinstance(schema, str) else json.dumps(schema)
    with pytest.raises(AtpError) as caught:
        SamplingConfig(json_schema=text)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message and len(message) < 600


def test_only_one_of_grammar_and_schema():
    with pytest.raises(AtpError, match="can follow one of them"):
        SamplingConfig(grammar='root ::= "a"', json_schema="{}")


def test_what_only_says_something_is_passed():
    plain = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    noted = copy.deepcopy(plain) | {
        "title": "T",
        "description": "d",
        "$defs": {"unused": {"not": 1}},
    }
    noted["properties"]["a"] |= {"default": "x", "format": "email", "examples": ["y"]}
    assert grammar_of(json.dumps(noted)) == grammar_of(json.dumps(plain))


@pytest.mark.parametrize("schema", ["{", "[]", '{"type": "x"}', '{"$ref": "#/a"}', "[" * 100000])
def test_the_converter_alone_says_what_is_wrong(schema):
    with pytest.raises(AtpError, match="JSON schema") as caught:
        _core.json_schema_to_grammar(schema)
    assert "\n" not in str(caught.value)


def test_a_pattern_that_the_converter_cannot_write_is_an_error():
    with pytest.raises(AtpError, match="accepting any string"):
        _core.json_schema_to_grammar('{"type": "string", "pattern": "a+"}')


def test_the_deepest_that_is_taken_fits_a_small_stack():
    schemas = [many_references(180), nested(30, {}), doubled(5)]
    failed = []

    def convert():
        try:
            for schema in schemas:
                SamplingConfig(json_schema=json.dumps(schema))
        except AtpError as error:
            failed.append(error)

    before = threading.stack_size(2 << 20)
    try:
        thread = threading.Thread(target=convert)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert not failed


def test_2000_random_mutations_end_in_an_error_or_not_at_all():
    rng = random.Random(6)
    texts = [json.dumps(schema) for schema in SCHEMAS.values()]
    alphabet = [*'"[]{}:,\\0-19e.^$*+?() ', '"type"', '"$ref":"#/$defs/a_b",', "null", "{}", "é"]
    alphabet += ['"minimum":3,', '"items":{},', '"properties":', '"pattern":"^[a-c]$",']
    outcomes, n_lines = {True: 0, False: 0}, 0
    for i in range(2000):
        text = mutated(texts[i % len(texts)], rng, alphabet)
        try:
            SamplingConfig(json_schema=text)
            outcomes[True] += 1
        except AtpError as error:
            outcomes[False] += 1
            n_lines = max(n_lines, 1 + str(error).count("\n"))
    assert n_lines == 1
    assert min(outcomes.values()) > 40, "the mutations must reach both ends"


def test_the_second_reading_knows_what_does_not_fit():
    assert fits({"caption": "abc", "objects": [{"name": "cat", "count": 1}]}, SCHEMAS["caption"])
    assert not fits({"caption": "ab", "objects": []}, SCHEMAS["caption"])
    assert not fits([4, -5, 99, 7, 0], SCHEMAS["ranges"])
    assert not fits({"x": 3}, SCHEMAS["references"])
    assert not fits("12345", SCHEMAS["type list"])
