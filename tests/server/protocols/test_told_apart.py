"""Which `oneOf` becomes `anyOf`, and that nothing else of a schema changes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from rbee.server.protocols.told_apart import with_any_of


def branch(kind: Any, **more: Any) -> dict[str, Any]:
    """An object with a constant."""
    return {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"], **more}


class Cat(BaseModel):
    """One."""

    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    """Another one."""

    kind: Literal["dog"]


class Pets(BaseModel):
    """A list of both."""

    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]]


def test_discriminated_unions_of_pydantic():
    """A list of references, with a `discriminator` that is no keyword of JSON Schema."""
    schema = Pets.model_json_schema()
    items = schema["properties"]["pets"]["items"]
    assert "oneOf" in items
    rewritten = with_any_of(schema)["properties"]["pets"]["items"]
    assert rewritten == {"discriminator": items["discriminator"], "anyOf": items["oneOf"]}


@pytest.mark.parametrize(
    "branches",
    [
        [branch("a"), branch("b")],
        [branch(True), branch(False)],
        [branch("a"), {**branch("b"), "properties": {"kind": {"enum": ["b"]}}}],
        [branch("a"), {"$ref": "#/$defs/b"}, {"$ref": "#/definitions/c"}],
    ],
)
def test_branches_that_are_told_apart(branches):
    """By texts or booleans, each of them another one, wherever the branches are."""
    definitions = {"$defs": {"b": branch("b")}, "definitions": {"c": branch("c")}}
    found = with_any_of({**definitions, "properties": {"x": {"oneOf": branches}}})
    assert found == {**definitions, "properties": {"x": {"anyOf": branches}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [branch("a"), branch("a")]},
        {"oneOf": [branch("a"), branch("b", required=[])]},
        {"oneOf": [branch("a"), {"properties": branch("b")["properties"], "required": ["kind"]}]},
        {"oneOf": [branch(1), branch(1.0)]},
        {"oneOf": [branch("a"), {"$ref": "#/$defs/nowhere"}]},
        {"oneOf": [branch("a"), {"$ref": "https://example.com/b"}]},
        {"oneOf": [branch("a"), {"$ref": 5}], "$defs": 7},
        {"oneOf": [branch("a"), branch("b")], "anyOf": [{}]},
        {
            "oneOf": [
                branch("a"),
                {"type": "object", "properties": {"kind": {"enum": ["b", "c"]}}, "required": ["kind"]},
            ]
        },
        {"oneOf": []},
        {"oneOf": {"type": "string"}},
        {"oneOf": [True, 5, None]},
        {"oneOf": [branch("a"), {"type": "object", "properties": 5, "required": [["kind"]]}]},
        {"const": {"oneOf": [branch("a"), branch("b")]}},
        {"enum": [{"oneOf": [branch("a"), branch("b")]}]},
    ],
)
def test_all_else_stays(schema):
    """What may overlap, is no schema, or is a value that looks like one."""
    assert with_any_of(schema) == schema
