"""Which types a schema allows the members of an object."""

from __future__ import annotations

import pytest

from rbee.server.text.output.schema_types import types_of

DEFINITIONS = {
    "text": {"type": "string"},
    "a/b~c": {"type": "integer"},
    "round": {"$ref": "#/$defs/round"},
    "wide": {"anyOf": [{"$ref": "#/$defs/wide"}, {"$ref": "#/$defs/wide"}]},
}


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["integer", "null"]}, {"integer", "null"}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"string", "null"}),
        ({"oneOf": [{"type": "array"}, {"anyOf": [{"type": "object"}]}]}, {"array", "object"}),
        ({"allOf": [{"$ref": "#/$defs/text"}], "description": "d"}, {"string"}),
        ({"$ref": "#/$defs/a~1b~0c"}, {"integer"}),
        ({"enum": ["a", "b"]}, {"string"}),
        ({"const": "a"}, {"string"}),
        ({"enum": ["a", 1]}, None),
        ({"const": 1}, None),
        ({"anyOf": [{"type": "string"}, {}]}, None),
        ({"$ref": "#/$defs/none"}, None),
        ({"$ref": "https://example.com"}, None),
        ({"$ref": "#/$defs/round"}, None),
        ({"$ref": "#/$defs/wide"}, None),
        ({}, None),
        (True, None),
        (5, None),
    ],
)
def test_types(schema, types):
    """None where it is any, or not seen in a bounded number of steps."""
    found = types_of({"properties": {"member": schema}, "$defs": DEFINITIONS}, "member")
    assert found == (None if types is None else frozenset(types))


@pytest.mark.parametrize("schema", [{}, {"properties": {}}, {"properties": None}, {"properties": {"other": {}}}])
def test_unknown_members(schema):
    """A member that the schema does not have is a string."""
    assert types_of(schema, "member") == frozenset({"string"})
