"""DeepSeek V3.2's calls: a block of <｜DSML｜invoke name="NAME">, with a tag around each parameter.

Owns how such values become JSON: with string="true" as they are, streamed; any other is JSON if it is of a type that
the tool's schema allows, else a string. A missing closing tag is taken for granted where the next one comes.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from rbee.server.text.output.qwen3_coder import converted
from rbee.server.text.output.reading import OddOutputError, attempt
from rbee.server.text.output.schema_types import types_of
from rbee.server.text.output.tool_formats import ToolFormat

if TYPE_CHECKING:
    from typing import Any

    from rbee.server.text.output.reading import Reading, Waiting

DSML_CALLS, _INVOKE, _PARAMETER = "<｜DSML｜function_calls>", "<｜DSML｜invoke", "<｜DSML｜parameter"
DSML_END_CALLS, DSML_END_INVOKE, DSML_END_PARAMETER = (
    f"</｜DSML｜{what}>" for what in ("function_calls", "invoke", "parameter")
)
_VALUE_ENDS = frozenset({DSML_END_PARAMETER, _PARAMETER, DSML_END_INVOKE})
_IN_QUOTES = re.compile(r'[^"<>\n]*')


class Dsml(ToolFormat):
    """Tags around names and values."""

    openers = frozenset({DSML_CALLS})
    tags = frozenset({DSML_END_CALLS, _INVOKE, DSML_END_INVOKE, _PARAMETER, DSML_END_PARAMETER})
    closers = frozenset({DSML_END_CALLS, DSML_END_INVOKE, DSML_END_PARAMETER})

    def read_calls(self, reading: Reading, opener: str) -> Waiting[None]:  # noqa: ARG002 - there is one
        yield from reading.reader.skip()
        while (yield from attempt(reading, _read_call(reading))):
            yield from reading.reader.skip()


def dsml_head(tag: str, name: str, string: str = "") -> str:
    """A tag with its attributes; `tag` is invoke or parameter."""
    return f'<｜DSML｜{tag} name="{name}"' + (f' string="{string}"' if string else "") + ">"


def _read_call(reading: Reading) -> Waiting[None]:
    reader, spans = reading.reader, reading.spans
    yield from reader.read_one_of((_INVOKE,))
    name = yield from _read_attribute(reading, "name")
    if not name:
        raise OddOutputError
    yield from _read_bracket(reading)
    spans.call(name)
    tool = reading.tools.get(name)
    schema = {} if tool is None else tool.parameters
    separator = "{"
    yield from reader.skip()
    tag = yield from reader.read_one_of((_PARAMETER, DSML_END_INVOKE))
    while tag == _PARAMETER:
        tag = yield from _read_parameter(reading, schema, separator)
        separator = ", "
        if tag == DSML_END_PARAMETER:
            yield from reader.skip()
            tag = yield from reader.read_one_of((_PARAMETER, DSML_END_INVOKE))
    if spans.has_arguments:
        spans.arguments("}")
    spans.end_call()


def _read_parameter(reading: Reading, schema: dict[str, Any], separator: str) -> Waiting[str]:
    """Read a parameter from its attributes on, and return the tag behind it."""
    write = reading.spans.arguments
    key = yield from _read_attribute(reading, "name")
    is_string = (yield from _read_attribute(reading, "string")) == "true"
    yield from _read_bracket(reading)
    write(f"{separator}{_as_json(key)}: ")
    if is_string:
        write('"')
        tag = yield from reading.reader.copy_until(_VALUE_ENDS, lambda piece: write(_as_json(piece)[1:-1]))
        write('"')
        return tag
    pieces: list[str] = []
    tag = yield from reading.reader.copy_until(_VALUE_ENDS, pieces.append)
    properties = schema.get("properties")
    is_known = isinstance(properties, dict) and key in properties
    write(converted("".join(pieces), types_of(schema, key) if is_known else None))
    return tag


def _read_attribute(reading: Reading, name: str) -> Waiting[str]:
    yield from reading.reader.skip()
    yield from reading.reader.read_one_of((f'{name}="',))
    value = yield from reading.reader.read_run(_IN_QUOTES)
    if reading.reader.next != '"':
        raise OddOutputError
    reading.reader.read(1)
    return value


def _read_bracket(reading: Reading) -> Waiting[None]:
    if (yield from reading.reader.skip()) != ">":
        raise OddOutputError
    reading.reader.read(1)


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
