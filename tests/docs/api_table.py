"""Writes the tables of docs/api.md: `python -m tests.docs.api_table`.

Owns how the tables look. Names, types, defaults, ranges, classes and meanings are the code's.
"""

from __future__ import annotations

import json
import types
import typing
from typing import Any

import msgspec

from rbee.server.protocols import parameters
from rbee.server.protocols.meanings import MEANINGS
from rbee.server.protocols.openai import schemas
from tests.docs.generated_part import ROOT, GeneratedPart

PART = GeneratedPart(ROOT / "docs" / "api.md", "parameters")
CHAT, COMPLETION = schemas.ChatRequest, schemas.CompletionRequest

_BOUNDS = {
    "stop": f"at most {parameters.MAX_STOP_STRINGS}, each of 1 to {parameters.MAX_STOP_BYTES} bytes",
    "stop_token_ids": f"at most {parameters.MAX_STOP_TOKEN_IDS} ids",
    "logit_bias": f"at most {parameters.MAX_LOGIT_BIASES} ids, each from -100 to 100",
    "cache_salt": "at most 256 characters",
    "typical_p": "above 0, to 1",
}
_WORDS = {int: "integer", float: "number", str: "string", bool: "boolean", dict: "object", Any: "anything"}


def _word(kind: Any) -> str:
    """A type in words."""
    arguments = [argument for argument in typing.get_args(kind) if argument is not type(None)]
    match typing.get_origin(kind):
        case types.UnionType:
            return " or ".join(_word(argument) for argument in arguments)
        case origin if origin is list:
            return f"list of {_word(arguments[0])}s"
        case origin if origin is dict:
            return "object"
        case _:
            return _WORDS[kind]


def _default(field: msgspec.structs.FieldInfo) -> str:
    """As JSON; nothing for a field that is absent by default."""
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    if default is msgspec.NODEFAULT:
        return "needed"
    return "" if default is None else f"`{json.dumps(default)}`"


def _range(name: str) -> str:
    ranges = parameters.RANGES | schemas.TextRequest.own_ranges
    if name in _BOUNDS or name not in ranges:
        return _BOUNDS.get(name, "")
    low, high = ranges[name]
    return f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    """Short: powers of two by their exponent."""
    for power, text in ((-(2**63), "-2^63"), (2**63 - 1, "2^63 - 1"), (2**31 - 1, "2^31 - 1")):
        if value == power:
            return text
    return f"{value:g}"


def _followed() -> list[str]:
    lines = ["| parameter | of | type | default | range | does |", "|---|---|---|---|---|---|"]
    hints = {shape: typing.get_type_hints(shape) for shape in (CHAT, COMPLETION)}
    fields = {shape: {field.name: field for field in msgspec.structs.fields(shape)} for shape in (CHAT, COMPLETION)}
    for name, meaning in MEANINGS.items():
        if name in schemas.ADVISORY_CHAT:
            continue
        shapes = [shape for shape in (CHAT, COMPLETION) if name in fields[shape]]
        kinds = list(dict.fromkeys(_word(hints[shape][name]) for shape in shapes))
        defaults = list(dict.fromkeys(_default(fields[shape][name]) for shape in shapes))
        where = "both" if len(shapes) == 2 else "chats" if shapes == [CHAT] else "completions"
        others = [f"`{other}`" for other, usual in schemas.CHAT_SYNONYMS.items() if usual == name]
        also = f", also {', '.join(others)}" if others else ""
        shown = " / ".join(kinds), " / ".join(default or "absent" for default in defaults), _range(name)
        lines.append(f"| `{name}`{also} | {where} | {' | '.join(shown)} | {meaning} |")
    return lines


def _advisory() -> list[str]:
    places = [
        ("requests", schemas.ADVISORY_CHAT),
        ("`stream_options`", schemas.ADVISORY_STREAM_OPTIONS),
        ("messages", schemas.ADVISORY_MESSAGE),
        ("parts of messages", schemas.ADVISORY_PART),
        ("tools", schemas.ADVISORY_TOOL),
        ("calls in messages", schemas.ADVISORY_CALL),
    ]
    lines = ["| advisory, in | fields |", "|---|---|"]
    return lines + [f"| {place} | {', '.join(f'`{name}`' for name in sorted(names))} |" for place, names in places]


def _unsupported() -> list[str]:
    lines = ["| unsupported | of | taken with | `--lenient` |", "|---|---|---|---|"]
    for name in sorted(schemas.NEUTRAL_CHAT.keys() | schemas.NEUTRAL_COMPLETION.keys()):
        chat, completion = name in schemas.NEUTRAL_CHAT, name in schemas.NEUTRAL_COMPLETION
        where = "both" if chat and completion else "chats" if chat else "completions"
        neutral = (schemas.NEUTRAL_CHAT if chat else schemas.NEUTRAL_COMPLETION)[name]
        values = ", ".join(f"`{json.dumps(value)}`" for value in (*neutral, None))
        lenient = "ignores it" if name in schemas.DISPENSABLE else "refuses it too"
        lines.append(f"| `{name}` | {where} | {values} | {lenient} |")
    return lines


def section() -> str:
    """All tables."""
    return "\n".join([*_followed(), "", *_advisory(), "", *_unsupported(), "", ""])


if __name__ == "__main__":
    PART.page.write_text(PART.filled(section()))
