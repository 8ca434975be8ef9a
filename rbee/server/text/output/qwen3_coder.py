"""Qwen3-Coder's calls: <tool_call>, <function=NAME>, <parameter=KEY>, the value as it is, and the closing tags.

Owns how such values become JSON: by the tool's schema. A value is a string where the schema says so, or says nothing of
the parameter; it is streamed. Any other is converted when it is complete: JSON stays as the model wrote it, if it is of
a type that the schema allows (Python's True, False and None count as JSON's); what is not, is a string. The line break
behind the opening tag and the one in front of the closing tag belong to the tags.

Some models leave out <tool_call>, or a closing tag: </parameter> is also taken for granted where the next parameter or
</function> comes, as vLLM does. Behind <tool_call>, JSON as Hermes' is a call too.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from rbee.server.text.output.json_calls import read_calls
from rbee.server.text.output.reading import OddOutputError, attempt
from rbee.server.text.output.schema_types import types_of
from rbee.server.text.output.tool_formats import ToolFormat

if TYPE_CHECKING:
    from rbee.server.text.output.reading import Reading, Waiting

_CALL, _FUNCTION, _PARAMETER = "<tool_call>", "<function=", "<parameter="
_END_PARAMETER, _END_FUNCTION, _END_CALL = "</parameter>", "</function>", "</tool_call>"
_VALUE_ENDS = frozenset({_END_PARAMETER, _PARAMETER, _END_FUNCTION})
_IN_TAG = re.compile(r"[^<>\n]*")
_STRING = frozenset({"string"})
_STRING_OR_NULL = frozenset({"string", "null"})
_PYTHON = {"True": "true", "False": "false", "None": "null"}
_NULLS = ("null", "None")


class Qwen3Coder(ToolFormat):
    """Tags around names and values."""

    openers = frozenset({_CALL, _FUNCTION})
    closers = frozenset({_END_CALL, _END_FUNCTION, _END_PARAMETER})
    tags = closers | {_PARAMETER}

    def read_calls(self, reading: Reading, opener: str) -> Waiting[None]:
        if (yield from attempt(reading, _read_call(reading, opener))):
            yield from reading.reader.skip()
        elif opener == _CALL:
            yield from read_calls(reading)


def _read_call(reading: Reading, opener: str) -> Waiting[None]:
    reader, spans = reading.reader, reading.spans
    if opener == _CALL:
        yield from reader.skip()
        yield from reader.read_one_of((_FUNCTION,))
    name = yield from _read_name(reading)
    spans.call(name)
    tool = reading.tools.get(name)
    schema = {} if tool is None else tool.parameters
    separator = "{"
    tag = yield from _next_tag(reading)
    while tag == _PARAMETER:
        key = yield from _read_name(reading)
        spans.arguments(f"{separator}{_as_json(key)}: ")
        separator = ", "
        tag = yield from _read_value(reading, types_of(schema, key))
        if tag == _END_PARAMETER:
            tag = yield from _next_tag(reading)
    if spans.has_arguments:
        spans.arguments("}")
    spans.end_call()


def _next_tag(reading: Reading) -> Waiting[str]:
    yield from reading.reader.skip()
    return (yield from reading.reader.read_one_of((_PARAMETER, _END_FUNCTION, _END_CALL)))


def _read_name(reading: Reading) -> Waiting[str]:
    """The rest of a tag."""
    name = (yield from reading.reader.read_run(_IN_TAG)).strip()
    if not name or reading.reader.next != ">":
        raise OddOutputError
    reading.reader.read(1)
    return name


def _read_value(reading: Reading, types: frozenset[str] | None) -> Waiting[str]:
    """Read a value of one of these types, and return the tag behind it."""
    reader = reading.reader
    if (yield from reader.peek()) == "\n":
        reader.read(1)
    value = _Value(reading, types)
    tag = yield from reader.copy_until(_VALUE_ENDS, value.write)
    value.end()
    return tag


class _Value:
    """One value, from the model's text to JSON."""

    def __init__(self, reading: Reading, types: frozenset[str] | None) -> None:
        self._write = reading.spans.arguments
        self._types = types
        self._held = ""  # a line break that may be the tag's, or the beginning of a null
        self._pieces: list[str] = []  # of a value that is converted when it is complete
        self._is_string = types == _STRING
        self._begun = False

    def write(self, piece: str) -> None:
        if self._types not in (_STRING, _STRING_OR_NULL):
            self._pieces.append(piece)
            return
        text = self._held + piece
        if not self._is_string:
            if any(null.startswith(text.removesuffix("\n")) for null in _NULLS):
                self._held = text
                return
            self._is_string = True
        end = len(text) - text.endswith("\n")
        self._held = text[end:]
        self._write(("" if self._begun else '"') + _as_json(text[:end])[1:-1])
        self._begun = True

    def end(self) -> None:
        """The value is complete."""
        text = ("".join(self._pieces) + self._held).removesuffix("\n")
        if self._begun:
            self._write('"')
        elif self._is_string:
            self._write(_as_json(text))
        else:
            self._write(converted(text, self._types))


def converted(text: str, types: frozenset[str] | None) -> str:
    """The JSON of a value of one of `types`, any if that is None."""
    word = text.strip()
    if types is not None and "boolean" in types and word.lower() in ("true", "false"):
        return word.lower()
    word = _PYTHON.get(word, word)
    try:
        value = json.loads(word, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _as_json(text)
    return word if types is None or types & _types_of_value(value) else _as_json(text)


def _types_of_value(value: Any) -> set[str]:
    match value:
        case None:
            return {"null"}
        case bool():
            return {"boolean"}
        case str():
            return set()  # a string stands there without quotes
        case int():
            return {"integer", "number"}
        case float():
            return {"number", "integer"} if value.is_integer() else {"number"}
        case list():
            return {"array"}
        case _:
            return {"object"}


def _refuse(word: str) -> None:
    raise ValueError(word)


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
