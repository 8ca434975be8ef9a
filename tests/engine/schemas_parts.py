"""JSON schemas as people use them, for the tests of grammars: some by hand, most made of what these consist of.

The kinds are those that collections of schemas in use have: arguments of functions, settings of programs, events of
trackers, resources of clusters, content of publishers, and the answers that applications ask a model for.
"""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

_WORDS = """
    account action address age amount body category city code color comment content count country created
    currency data date description duration email enabled end error event first format height host id image
    index items kind label language last latitude level limit link list location longitude max message method
    min mode model name note number offset options order owner page params parent path phone port position price
    priority query range rate reason region result role score session size source start state status street
    subject summary tags target text timeout timestamp title token total type unit updated url user value
    version weight width zone
""".split()  # noqa: SIM905 - a text reads better than a list of strings
_FORMATS = ("date-time", "date", "time", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "duration")
_PATTERNS = (
    "^[a-z]+$",
    "^[A-Z]{2,3}-[0-9]{1,4}$",
    "^#[0-9a-fA-F]{6}$",
    r"^\d{4}-\d{2}$",
    "^(low|medium|high)$",
    r"^v[0-9]+(\.[0-9]+){0,2}$",
    "[a-z0-9]([-a-z0-9]*[a-z0-9])?",
    r"^[^/\s]{1,20}$",
    "^$|^x-",
    r"^/([a-z]+/)*[a-z]*$",
)


def obj(required: list[str] | None = None, /, **properties: Schema) -> Schema:
    """A closed object, as strict outputs have it; all of it is required unless `required` says what."""
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def arr(items: Schema, **bounds: int) -> Schema:
    """An array."""
    return {"type": "array", "items": items, **bounds}


STRING: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
INTEGER: Schema = {"type": "integer"}
BOOLEAN: Schema = {"type": "boolean"}


def one_of(*values: Any) -> Schema:
    """One of these values."""
    return {"enum": list(values)}


_TREE = {"$defs": {"node": obj(["name"], name=STRING, children=arr({"$ref": "#/$defs/node"}, maxItems=2))}}
_SHAPES = {
    "$defs": {
        "circle": obj(kind={"const": "circle"}, radius={"type": "number", "exclusiveMinimum": 0}),
        "square": obj(kind={"const": "square"}, side={"type": "number", "minimum": 0, "maximum": 100}),
    }
}
BY_HAND: dict[str, Schema] = {
    "person": obj(
        name=STRING, age={"type": "integer", "minimum": 0, "maximum": 150}, email={**STRING, "format": "email"}
    ),
    "sentiment": obj(
        sentiment=one_of("positive", "negative", "neutral"), confidence={**NUMBER, "minimum": 0, "maximum": 1}
    ),
    "yes or no": one_of("yes", "no", None),
    "get_weather": obj(
        ["location"],
        location=STRING,
        unit=one_of("celsius", "fahrenheit"),
        days={**INTEGER, "minimum": 1, "maximum": 14},
    ),
    "search": obj(
        ["query"],
        query={**STRING, "minLength": 1, "maxLength": 80},
        filters=obj([], since={**STRING, "format": "date"}, tags=arr(STRING, maxItems=4)),
    ),
    "send_email": obj(
        ["to", "subject"],
        to=arr({**STRING, "format": "email"}, minItems=1, maxItems=3),
        subject=STRING,
        body=STRING,
        urgent=BOOLEAN,
    ),
    "steps and answer": obj(
        steps=arr(obj(explanation=STRING, output=STRING), minItems=1, maxItems=4), final_answer=STRING
    ),
    "entities": obj(
        attributes=arr(STRING, maxItems=3), colors=arr(STRING, maxItems=3), animals=arr(STRING, maxItems=3)
    ),
    "screen": obj(
        type=one_of("div", "button", "form"), label=STRING, attributes=arr(obj(name=STRING, value=STRING), maxItems=2)
    ),
    "moderation": obj(
        is_violating=BOOLEAN,
        category={"anyOf": [one_of("violence", "sexual", "self_harm"), {"type": "null"}]},
        explanation={"type": ["string", "null"]},
    ),
    "linked list": {**_TREE, "$ref": "#/$defs/node"},
    "shapes": {
        **_SHAPES,
        "type": "array",
        "items": {"anyOf": [{"$ref": "#/$defs/circle"}, {"$ref": "#/$defs/square"}]},
        "minItems": 1,
        "maxItems": 3,
    },
    "shapes, told apart": {**_SHAPES, "oneOf": [{"$ref": "#/$defs/circle"}, {"$ref": "#/$defs/square"}]},
    "invoice": obj(
        number={**STRING, "pattern": "^INV-[0-9]{5}$"},
        lines=arr(
            obj(
                item=STRING,
                quantity={**INTEGER, "minimum": 1, "maximum": 999},
                price={**NUMBER, "minimum": 0, "maximum": 10000},
            ),
            minItems=1,
            maxItems=5,
        ),
        paid=BOOLEAN,
    ),
    "address": obj(
        ["street", "city"],
        street=STRING,
        city=STRING,
        zip={**STRING, "pattern": "^[0-9]{5}(-[0-9]{4})?$"},
        country={**STRING, "minLength": 2, "maxLength": 2},
    ),
    "package.json": {
        "type": "object",
        "properties": {
            "name": {**STRING, "pattern": "^[a-z][a-z0-9-]*$"},
            "version": {**STRING, "pattern": r"^\d+\.\d+\.\d+$"},
            "private": BOOLEAN,
            "scripts": {"type": "object", "additionalProperties": STRING, "maxProperties": 3},
        },
        "required": ["name", "version"],
        "additionalProperties": False,
    },
    "docker service": {
        "type": "object",
        "properties": {
            "image": STRING,
            "ports": arr({"type": ["string", "integer"]}, maxItems=3),
            "environment": {
                "anyOf": [
                    arr(STRING, maxItems=3),
                    {
                        "type": "object",
                        "additionalProperties": {"type": ["string", "number", "null"]},
                        "maxProperties": 3,
                    },
                ]
            },
        },
        "required": ["image"],
        "additionalProperties": False,
    },
    "pod": obj(
        apiVersion={"const": "v1"},
        kind={"const": "Pod"},
        metadata=obj(
            ["name"],
            name={**STRING, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 20},
            labels={"type": "object", "additionalProperties": STRING, "maxProperties": 2},
        ),
        spec=obj(
            containers=arr(
                obj(["name", "image"], name=STRING, image=STRING, args=arr(STRING, maxItems=2)), minItems=1, maxItems=2
            )
        ),
    ),
    "geojson point": obj(
        type={"const": "Point"},
        coordinates={
            "type": "array",
            "prefixItems": [{**NUMBER, "minimum": -180, "maximum": 180}, {**NUMBER, "minimum": -90, "maximum": 90}],
            "minItems": 2,
            "items": False,
        },
    ),
    "page view": obj(
        event={"const": "page_view"},
        url={**STRING, "format": "uri"},
        at={**STRING, "format": "date-time"},
        user_id={**STRING, "format": "uuid"},
        ip={**STRING, "format": "ipv4"},
    ),
    "resume": obj(
        basics=obj(["name"], name=STRING, summary=STRING),
        work=arr(
            obj(["company"], company=STRING, start={**STRING, "format": "date"}, end={"type": ["string", "null"]}),
            maxItems=2,
        ),
        skills=arr(obj(name=STRING, level={**INTEGER, "minimum": 1, "maximum": 5}), maxItems=3),
    ),
    "quiz": obj(
        question=STRING,
        choices={"type": "array", "items": STRING, "minItems": 4, "maxItems": 4},
        answer={**INTEGER, "minimum": 0, "maximum": 3},
    ),
    "sql": obj(query=STRING, parameters=arr({"anyOf": [STRING, NUMBER, BOOLEAN, {"type": "null"}]}, maxItems=4)),
    "translation": obj(**{"source language": one_of("de", "en", "fr"), "text": STRING, "é": STRING}),
    "open object": {"type": "object", "properties": {"id": INTEGER}, "required": ["id"]},
    "any array": {"type": "array", "maxItems": 3},
    "anything": {},
    "json object": {"type": "object"},
    "composed": {
        "allOf": [
            {"type": "object", "properties": {"id": INTEGER}, "required": ["id"]},
            {"properties": {"name": STRING}, "required": ["name"]},
        ]
    },
    "patterned keys": {
        "type": "object",
        "patternProperties": {"^x-": STRING, "^[0-9]+$": NUMBER},
        "additionalProperties": False,
        "maxProperties": 4,
    },
    "at least one": {
        "type": "object",
        "properties": {"a": STRING, "b": INTEGER},
        "additionalProperties": False,
        "minProperties": 1,
    },
    "multiples": obj(
        even={**INTEGER, "multipleOf": 2, "minimum": 0},
        cents={**NUMBER, "multipleOf": 0.01, "minimum": 0, "maximum": 10},
    ),
    "bounds": obj(
        a={**INTEGER, "minimum": -5, "exclusiveMaximum": 123456},
        b={**NUMBER, "exclusiveMinimum": -0.5, "maximum": 1.25},
        c={**INTEGER, "minimum": 10**9},
    ),
    "lengths": obj(
        a={**STRING, "minLength": 3, "maxLength": 3},
        b={**STRING, "minLength": 10, "maxLength": 12},
        c={**STRING, "maxLength": 0},
    ),
    "constants": obj(
        a={"const": None}, b={"const": [1, "two", {"three": 3.5}]}, c={"const": 'a "quoted"\n text \\ é😀'}
    ),
}


def generated(count: int, seed: int = 0) -> list[Schema]:
    """So many schemas of all kinds, the same ones for the same seed."""
    draw = random.Random(seed)
    kinds = [_function, _settings, _event, _resource, _content, _extraction, _composition, _recursive]
    return [kinds[number % len(kinds)](draw) for number in range(count)]


def _names(draw: random.Random, low: int, high: int) -> list[str]:
    return draw.sample(_WORDS, draw.randint(low, high))


def _some(draw: random.Random, names: list[str]) -> list[str]:
    return [name for name in names if draw.random() < 0.6]


def _string(draw: random.Random) -> Schema:
    match draw.randrange(6):
        case 0:
            return {**STRING, "format": draw.choice(_FORMATS)}
        case 1:
            return {**STRING, "pattern": draw.choice(_PATTERNS)}
        case 2:
            low = draw.randint(0, 5)
            return {**STRING, "minLength": low, "maxLength": low + draw.randint(0, 20)}
        case 3:
            return {"type": "string", "enum": _names(draw, 1, 8)}
        case _:
            return STRING | ({"description": "What it is."} if draw.random() < 0.5 else {})


def _number(draw: random.Random) -> Schema:
    low = draw.randint(-1000, 1000)
    match draw.randrange(5):
        case 0:
            return {**INTEGER, "minimum": low, "maximum": low + draw.randint(0, 10**6)}
        case 1:
            return {**NUMBER, "minimum": low / 8, "maximum": low / 8 + draw.randint(1, 100)}
        case 2:
            return {**INTEGER, "exclusiveMinimum": low}
        case 3:
            return NUMBER
        case _:
            return INTEGER


def _scalar(draw: random.Random) -> Schema:
    return draw.choice([_string, _string, _number, lambda _: BOOLEAN, lambda _: {"type": ["string", "null"]}])(draw)


def _value(draw: random.Random, depth: int) -> Schema:
    if depth == 0 or draw.random() < 0.6:
        return _scalar(draw)
    match draw.randrange(4):
        case 0:
            return arr(_value(draw, depth - 1), maxItems=draw.randint(1, 4))
        case 1:
            return {"anyOf": [_value(draw, depth - 1), {"type": "null"}]}
        case 2:
            return {"type": "object", "additionalProperties": _scalar(draw), "maxProperties": draw.randint(1, 3)}
        case _:
            return _object(draw, depth - 1)


def _object(draw: random.Random, depth: int, low: int = 1, high: int = 5) -> Schema:
    names = _names(draw, low, high)
    return obj(_some(draw, names), **{name: _value(draw, depth) for name in names})


def _function(draw: random.Random) -> Schema:
    """Arguments, few and flat."""
    return _object(draw, 1)


def _settings(draw: random.Random) -> Schema:
    """Of a program: many optional ones, some nested, defaults and descriptions beside them."""
    schema = _object(draw, 2, 5, 14)
    for name, value in schema["properties"].items():
        if draw.random() < 0.5:
            schema["properties"][name] = {"title": name, "description": "A setting.", "default": None, **value}
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Settings", **schema, "required": []}


def _event(draw: random.Random) -> Schema:
    """Flat, of many scalars, all of them there."""
    names = _names(draw, 4, 12)
    return obj(**{name: _scalar(draw) for name in names})


def _resource(draw: random.Random) -> Schema:
    """Deep, with constants and maps."""
    return obj(
        kind={"const": draw.choice(_WORDS).title()},
        metadata={"type": "object", "additionalProperties": STRING, "maxProperties": 2},
        spec=_object(draw, 3, 2, 6),
    )


def _content(draw: random.Random) -> Schema:
    """A list of blocks of several types, told apart by a constant."""
    types = _names(draw, 2, 4)
    blocks = [
        obj(**{"is": {"const": name}}, **{other: _value(draw, 1) for other in _names(draw, 1, 3)}) for name in types
    ]
    return obj(title=STRING, blocks=arr({"anyOf": blocks}, minItems=1, maxItems=3))


def _extraction(draw: random.Random) -> Schema:
    """What applications ask for: lists of records, a choice, a number."""
    return obj(
        records=arr(_object(draw, 1, 2, 5), minItems=draw.randint(0, 1), maxItems=3),
        label={"enum": [*_names(draw, 2, 6), draw.randint(0, 9)]},
        score=_number(draw),
    )


def _composition(draw: random.Random) -> Schema:
    """Definitions, references and intersections."""
    left, right = _object(draw, 1), _object(draw, 1)
    del left["additionalProperties"], right["additionalProperties"]
    for name in left["properties"].keys() & right["properties"].keys():
        right["properties"][name] = left["properties"][name]
    both = {"allOf": [{"$ref": "#/$defs/left"}, {"$ref": "#/$defs/right"}]}
    either = {"anyOf": [_object(draw, 1), _scalar(draw)]}
    return {"$defs": {"left": left, "right": right, "either": either}} | obj(
        both=both, either={"$ref": "#/$defs/either"}
    )


def _recursive(draw: random.Random) -> Schema:
    """Trees."""
    node = _object(draw, 0, 1, 3)
    node["properties"]["children"] = arr({"$ref": "#/$defs/node"}, maxItems=draw.randint(1, 2))
    return {"$defs": {"node": node}, "$ref": "#/$defs/node"}
