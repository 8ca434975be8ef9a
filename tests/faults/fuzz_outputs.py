"""Requests that say what their output must be, for the fuzzing of the door: tools, calls and their results, and forms.

Owns the valid ones, what is put into others, and how something inside of a body is bent. Does not know how a request is
sent (`tests.faults.fuzz_requests`).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from tests.raw_client import CHAT, COMPLETIONS

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"

_ASKED = [{"role": "user", "content": "hi"}]
_SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, "x"]}}, "required": ["a"], "additionalProperties": False}
_UNION = {
    "oneOf": [
        {"type": "object", "properties": {"k": {"const": name}}, "required": ["k"], "additionalProperties": False}
        for name in ("one", "two")
    ]
}
_TREE = {
    "$defs": {"tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}}},
    "type": "object",
    "properties": {"tree": {"$ref": "#/$defs/tree"}, "at": {"type": "string", "format": "date-time"}},
}
_LISTS = {"type": "array", "items": {"type": "string", "pattern": "^[a-f]{2}$"}, "minItems": 1, "maxItems": 3}


def _function(name: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": schema, **more}}


def _flat(name: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, "parameters": schema, **more}


def _anthropic(name: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "description": "d", "input_schema": schema, **more}


_TOOLS = [_function("f", _SCHEMA), _function("g", {"type": "object"}, strict=True)]
_NAMED = {"type": "function", "function": {"name": "f"}}
_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
_CALLED = [
    *_ASKED,
    {"role": "assistant", "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "r"},
]
_USED = [
    *_ASKED,
    {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "r"}]},
]
_ITEMS = [
    {"role": "user", "content": "hi"},
    {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "r"},
]

_SHORT = {"max_tokens": 3}
_CHAT = {"messages": _ASKED, **_SHORT}
_COMPLETION = {"prompt": "hi", **_SHORT}
_RESPONSE = {"input": "hi", "max_output_tokens": 3}
_OF_SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": _SCHEMA}}

ROUTES: tuple[tuple[str, str, dict[str, Any] | None, int], ...] = (  # method, target, body, status
    ("POST", CHAT, {**_CHAT, "tools": _TOOLS}, 200),
    ("POST", CHAT, {**_CHAT, "tools": _TOOLS, "tool_choice": "required", "stream": True}, 200),
    ("POST", CHAT, {**_CHAT, "tools": _TOOLS, "tool_choice": _NAMED, "parallel_tool_calls": False}, 200),
    (
        "POST",
        CHAT,
        {
            **_CHAT,
            "tools": _TOOLS,
            "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [_NAMED]}},
        },
        200,
    ),
    ("POST", CHAT, {**_CHAT, "tools": _TOOLS, "response_format": {"type": "json_object"}}, 200),
    ("POST", CHAT, {**_CHAT, "tools": _TOOLS, "grammar": 'start: "a"'}, 400),
    ("POST", CHAT, {**_CHAT, "tool_choice": "required"}, 400),
    ("POST", CHAT, {"messages": _CALLED, "tools": _TOOLS, **_SHORT}, 200),
    ("POST", CHAT, {**_CHAT, "response_format": {"type": "json_object"}, "stream": True}, 200),
    ("POST", CHAT, {**_CHAT, "response_format": _OF_SCHEMA, "max_tokens": 24}, 200),
    ("POST", CHAT, {**_CHAT, "response_format": _OF_SCHEMA, "guided_regex": "a"}, 400),
    ("POST", COMPLETIONS, {**_COMPLETION, "guided_json": _TREE, "stream": True}, 200),
    ("POST", COMPLETIONS, {**_COMPLETION, "json_schema": _LISTS, "n": 2}, 200),
    ("POST", COMPLETIONS, {**_COMPLETION, "guided_regex": r"\d[a-c]{1,3}"}, 200),
    ("POST", COMPLETIONS, {**_COMPLETION, "guided_choice": ["yes", "n/o", "\u00fc"], "logprobs": 1}, 200),
    ("POST", COMPLETIONS, {**_COMPLETION, "guided_grammar": 'root ::= "a" b\nb ::= [0-9]+ | "c"'}, 200),
    ("POST", COMPLETIONS, {**_COMPLETION, "grammar": 'start: "a" | b+\nb: /[x-z]/'}, 200),
    ("POST", COMPLETIONS, {**_COMPLETION, "structured_outputs": {"json": '{"type":"integer"}'}}, 200),
    ("POST", COMPLETIONS, {**_COMPLETION, "structured_outputs": {"choice": ["a", "b"]}, "min_tokens": 2}, 200),
    ("POST", COMPLETIONS, {**_COMPLETION, "guided_json": _UNION, "stop": ["zz"]}, 200),
    ("POST", COMPLETIONS, {**_COMPLETION, "guided_json": {"type": "object", "not": {}}}, 400),
    ("POST", RESPONSES, {**_RESPONSE, "tools": [_flat("f", _SCHEMA)], "tool_choice": "required", "stream": True}, 200),
    (
        "POST",
        RESPONSES,
        {
            "input": _ITEMS,
            "max_output_tokens": 3,
            "tools": [_flat("f", _SCHEMA)],
            "tool_choice": {"type": "function", "name": "f"},
        },
        200,
    ),
    (
        "POST",
        RESPONSES,
        {**_RESPONSE, "text": {"format": {"type": "json_schema", "name": "n", "schema": _SCHEMA}}},
        200,
    ),
    ("POST", RESPONSES, {**_RESPONSE, "text": {"format": {"type": "json_object"}}, "stream": True}, 200),
    (
        "POST",
        MESSAGES,
        {**_CHAT, "tools": [_anthropic("f", _SCHEMA)], "tool_choice": {"type": "any"}, "stream": True},
        200,
    ),
    (
        "POST",
        MESSAGES,
        {
            "messages": _USED,
            **_SHORT,
            "tools": [_anthropic("f", _SCHEMA)],
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        },
        200,
    ),
    ("POST", MESSAGES, {**_CHAT, "output_config": {"format": {"type": "json_schema", "schema": _SCHEMA}}}, 200),
    ("POST", MESSAGES, {**_CHAT, "output_format": {"type": "json_schema", "schema": _UNION}, "stream": True}, 200),
    ("POST", "/v1/messages/count_tokens", {"messages": _USED, "tools": [_anthropic("f", _SCHEMA)]}, 200),
    ("POST", "/tokenize", {"messages": _CALLED, "tools": _TOOLS}, 200),
)


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


_SCHEMAS: tuple[Any, ...] = (  # compile, or not
    *(_SCHEMA, _UNION, _TREE, _LISTS, {}, True, {"type": "null"}, {"type": ["object", "null"]}, {"enum": []}),
    *({"$ref": "#"}, {"$ref": "#/$defs/none"}, {"$ref": "http://localhost/x"}, {"$ref": 1}, {"const": {"a": [None]}}),
    *(
        _nested(40),
        _nested(63),
        _nested(65),
        {"type": "object", "properties": {"": {}, "\u2028\x00": {"type": "null"}}},
    ),
    {"type": "string", "pattern": "(a+)+$"},
    *({"type": "string", "pattern": "["}, {"type": "string", "pattern": "(?=a)b"}, {"type": "string", "format": "x"}),
    *({"type": "array", "minItems": 10**9}, {"type": "string", "minLength": 5, "maxLength": 2}, {"type": "wrong"}),
    *({"type": "integer", "minimum": 3, "maximum": 2}, {"type": "number", "multipleOf": 0}, {"maximum": 1e308}),
    {"type": "object", "additionalProperties": {"type": "object"}, "minProperties": 2},
    {"oneOf": [{"type": "string"}, {"type": "integer"}, 3]},
    {"oneOf": [{"type": "object", "properties": {"k": {"const": []}}, "required": ["k", {}]}] * 2},
    {"allOf": [_SCHEMA, {"type": "array"}]},
    {"anyOf": [_SCHEMA] * 30, "x-guidance": {"whitespace_flexible": 3}},
)
_REGEXES: tuple[Any, ...] = (
    *(
        "a",
        "",
        "(",
        "[",
        "a{2,1}",
        "a{1000}",
        "(a{100}){100}",
        "\\",
        "\\d/[\\d]",
        "(?i)x",
        "(?=a)",
        "\x00",
        "\u00fc|\U0001f41d",
    ),
    *("[^a]*", "(a|b)*c{3}", "^a$", "\\p{L}+", "a\nb", "(?P<x>a)(?P<x>b)", "[\ud800]", "(" * 300 + ")" * 300),
)
_GRAMMARS: tuple[Any, ...] = (
    *('start: "a"', "start: start", 'start: a\na: b\nb: "x"', 'start: s\ns: s s | "a"', "start: /a/ /b/", "", "start"),
    *(
        'root ::= "a" | root "b"',
        'root ::= [^"]{3}',
        "root ::= x",
        "root ::=",
        'a ::= "b"',
        "root ::= (",
        'root ::= "\\x"',
    ),
    *(
        "start: %json {}",
        'start: %json {"type": 3}',
        "start: %lark {",
        "%import common.INT\nstart: INT",
        "start: <|x|>",
    ),
    *("start: <[3-5]>", "start: <[999]>", 'start: "a"{3,100000}', "%llguidance {}\nstart: /x+/", "start: " + "(" * 300),
    'start[capture, stop="x", temperature=1]: /.*/',
)
_CHOICE_LISTS: tuple[Any, ...] = (["a", "b"], [], [""], ["a", "a"], ["x" * 300, "\x00"], [f"{n}" for n in range(300)])
_NAMES_OF_TOOLS = ("f", "g", "a-b_c", "", "x" * 128, "x" * 129, "a b", "\u00fc", "f\n")

# What a field of a body may be, more or less
_PARTS: dict[str, tuple[Any, ...]] = {
    "tools": (
        *(_TOOLS, [_TOOLS[0]] * 2, [_flat("f", _SCHEMA)], [_anthropic("f", _SCHEMA)], [], [{}], [None], {}),
        *([_function(name, _SCHEMA)] for name in _NAMES_OF_TOOLS),
        *([_function("f", schema)] for schema in _SCHEMAS),
        *([_anthropic("f", schema)] for schema in _SCHEMAS),
        *([_flat("f", schema, strict=True)] for schema in _SCHEMAS[:12]),
        *([{"type": kind}] for kind in ("web_search", "custom", "computer_20250124", "mcp", "", 3)),
        [{"type": "custom", "name": "x", "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'}}],
        [_function(f"f{number}", {}) for number in range(20)],
        [{"type": "function", "function": {"name": f"f{number}"}} for number in range(513)],
    ),
    "tool_choice": (
        *("none", "auto", "required", "any", "f", "", _NAMED, {"type": "function"}, {"type": "function", "name": "f"}),
        *(
            {"type": "any"},
            {"type": "auto"},
            {"type": "none"},
            {"type": "tool", "name": "f"},
            {"type": "tool", "name": "h"},
        ),
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]},
        {"type": "allowed_tools", "mode": "auto", "tools": []},
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [_NAMED, _NAMED]}},
        {"type": "custom", "name": "f"},
    ),
    "parallel_tool_calls": (True, False, None, "x"),
    "response_format": (
        *({"type": "text"}, {"type": "json_object"}, {"type": "json_schema"}, {"type": "grammar"}, {}, "json_object"),
        {"type": "json_object", "schema": _SCHEMA},
        *(
            {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
            for schema in _SCHEMAS
        ),
    ),
    "structured_outputs": (
        *({}, {"json_object": True}, {"json_object": True, "disable_any_whitespace": True}, {"structural_tag": "{}"}),
        *({"json": schema} for schema in _SCHEMAS),
        *({"regex": regex} for regex in _REGEXES),
        *({"choice": texts} for texts in _CHOICE_LISTS),
        *({"grammar": grammar} for grammar in _GRAMMARS),
    ),
    "guided_json": (*_SCHEMAS, '{"type":"object"}', "{", "[1]", '"x"', "[" * 5000),
    "json_schema": (*_SCHEMAS[:6], "{}"),
    "guided_regex": _REGEXES,
    "guided_choice": _CHOICE_LISTS,
    "guided_grammar": _GRAMMARS,
    "grammar": _GRAMMARS,
    "text": (
        *({}, {"format": {"type": "text"}}, {"format": {"type": "json_object"}}, {"verbosity": "low"}, {"format": {}}),
        *({"format": {"type": "json_schema", "name": "n", "schema": schema}} for schema in _SCHEMAS),
    ),
    "output_config": (
        *({}, {"effort": "low"}, {"format": None}),
        *({"format": {"type": "json_schema", "schema": schema}} for schema in _SCHEMAS),
    ),
    "output_format": tuple({"type": "json_schema", "schema": schema} for schema in _SCHEMAS),
    "thinking": ({"type": "enabled", "budget_tokens": 1024}, {"type": "disabled"}, {"type": "adaptive"}, {}),
    "reasoning": ({"effort": "low"}, {"effort": None}, {"summary": "auto"}),
    "reasoning_effort": ("low", "none", ""),
    "messages": (_CALLED, _USED, _ITEMS, [*_CALLED, *_USED], [*_CALLED, _CALLED[2]], _CALLED[1:], _CALLED[2:]),
    "input": (_ITEMS, _ITEMS[1:], _ITEMS[2:], [*_ITEMS, _ITEMS[2]], _CALLED, [{"type": "reasoning", "summary": []}]),
    "functions": ([_flat("f", _SCHEMA)], []),
    "function_call": ("auto", {"name": "f"}),
}
_FIELDS = tuple(_PARTS)
_KEYS = (
    *(
        "type",
        "function",
        "name",
        "parameters",
        "input_schema",
        "description",
        "strict",
        "schema",
        "json_schema",
        "format",
    ),
    *("tool_calls", "tool_call_id", "call_id", "id", "tool_use_id", "arguments", "input", "content", "output", "mode"),
    *("properties", "required", "items", "enum", "const", "$ref", "$defs", "oneOf", "anyOf", "allOf", "not", "pattern"),
    *("additionalProperties", "minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum", "prefixItems"),
    *("patternProperties", "cache_control", "is_error", "x-guidance", "default", "unknown", ""),
)
_SIGNS = (*"()[]{}|*+?.^$\\/\"'%:=~<>,;#-\n \x00\u00fc\ud800", "::=", "start", "root", "{1,", "%json", "(?")


def change_field(chance: random.Random, content: dict[str, Any]) -> None:
    """Put some of what says what an output must be into a body."""
    for _ in range(chance.choice((1, 1, 2))):
        name = chance.choice(_FIELDS)
        content[name] = _any_of(chance, _PARTS[name])


def bend(chance: random.Random, content: dict[str, Any], mark: str) -> None:
    """Leave out, repeat, move, wrap or replace something somewhere in a body; `mark` stands for something else."""
    container, key = chance.choice(list(_places(content)))
    value = container[key]
    match chance.randrange(8):
        case 0:
            del container[key]
        case 1:
            container[key] = mark
        case 2:
            other, place = chance.choice(list(_places(content)))
            container[key] = copy.deepcopy(other[place])
        case 3:
            container[key] = [value] if chance.random() < 0.5 else {chance.choice(_KEYS): value}
        case 4:
            container[key] = _any_of(chance, _PARTS[chance.choice(_FIELDS)])
        case 5 if isinstance(container, dict):
            container[chance.choice(_KEYS)] = _any_of(chance, (value, mark, chance.choice(_SCHEMAS)))
        case 5:
            container += copy.deepcopy(container)
        case _:
            container[key] = _bent_text(chance, value) if isinstance(value, str) else _any_of(chance, _SCHEMAS)


def _any_of(chance: random.Random, values: Sequence[Any]) -> Any:
    """One of them, as a copy that may be bent."""
    return copy.deepcopy(chance.choice(values))


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Each value inside of this one: what holds it, and where."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield content, key
        yield from _places(value)


def _bent_text(chance: random.Random, text: str) -> str:
    for _ in range(chance.choice((1, 1, 2, 5))):
        start, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        match chance.randrange(3):
            case 0:
                text = text[:start] + chance.choice(_SIGNS) + text[start:]
            case 1:
                text = text[:start] + text[min(end, start + 3) :]
            case _:
                text = text[:end] + text[start:]
    return text
