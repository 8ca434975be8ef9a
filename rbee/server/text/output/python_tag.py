"""What Llama 3.1 writes behind <|python_tag|>: JSON, a call of a built-in tool in Python's words, or code.

Owns which of them it is. NAME.call(KEY="VALUE") is a call where NAME is a tool of the request or one of Llama's own.
Code is a call of the request's tool that runs code, if there is one; else it is text. The code is the value of the
tool's only parameter, or of "code".
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rbee.server.text.output.json_calls import read_calls
from rbee.server.text.output.pythonic import read_keywords
from rbee.server.text.output.reading import attempt
from rbee.server.text.output.tool_formats import FunctionTags, JsonTags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rbee.server.text.output.reading import Reading, Waiting
    from rbee.server.text.output.tools import Tool

PYTHON_TAG = "<|python_tag|>"
_ENDS = frozenset({"<|eom_id|>", "<|eot_id|>"})
_BUILT_IN = ("brave_search", "wolfram_alpha")
_RUN_CODE = ("code_interpreter", "ipython", "python")  # tools, by their names


class LlamaTags(JsonTags):
    """JSON at the beginning of an answer; behind the tag all that this module has."""

    def __init__(self) -> None:
        super().__init__((PYTHON_TAG,), tuple(_ENDS), bare=True)

    def read_calls(self, reading: Reading, opener: str) -> Waiting[None]:  # noqa: ARG002 - there is one
        if not (yield from read_calls(reading)):
            yield from _read_python(reading)


class FunctionaryTags(FunctionTags):
    """Functionary v3.1's calls, and code behind the tag."""

    openers = FunctionTags.openers | {PYTHON_TAG}
    tags = FunctionTags.tags | _ENDS

    def read_calls(self, reading: Reading, opener: str) -> Waiting[None]:
        if opener == PYTHON_TAG:
            yield from _read_python(reading)
        else:
            yield from super().read_calls(reading, opener)


def _read_python(reading: Reading) -> Waiting[None]:
    if (yield from attempt(reading, _read_built_in(reading))):
        yield from reading.reader.skip()
        return
    tool = code_tool(reading.tools)
    if tool is not None:
        yield from _read_code(reading, tool)


def code_tool(tools: Mapping[str, Tool]) -> Tool | None:
    """The one of these, by their names, that code calls."""
    return next((tools[name] for name in _RUN_CODE if name in tools), None)


def _read_code(reading: Reading, tool: Tool) -> Waiting[None]:
    """Read all that comes up to the end of the message."""
    write, names = reading.spans.arguments, list(tool.parameters.get("properties") or {})
    key = names[0] if len(names) == 1 else "code"
    yield from reading.reader.skip()
    reading.spans.call(tool.name)
    write(f'{{{json.dumps(key, ensure_ascii=False)}: "')
    try:
        yield from reading.reader.copy_until(_ENDS, lambda piece: write(_escaped(piece)))
    finally:
        write('"}')
    reading.spans.edge()


def _read_built_in(reading: Reading) -> Waiting[None]:
    """Read NAME.call(KEY=VALUE, ...)."""
    names = dict.fromkeys((*reading.tools, *_BUILT_IN))
    yield from reading.reader.skip()
    word = yield from reading.reader.read_one_of([f"{name}.call(" for name in names])
    reading.spans.call(word.removesuffix(".call("))
    yield from read_keywords(reading)


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
