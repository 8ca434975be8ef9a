"""Calls in Python's words, in a list: [f(a=1), g(b="x")], as of Llama 4 and ToolACE; in tags, as of LFM2.

Owns where such a list stands, and what stands in it. Without a tag only the name of a tool of the request makes a call.
Arguments are keywords with literals (`rbee.server.text.output.python_values`).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from rbee.server.text.output.json_calls import JsonCall, read_further
from rbee.server.text.output.python_values import copy_python_value
from rbee.server.text.output.reading import OddOutputError, attempt
from rbee.server.text.output.tool_formats import ToolFormat

if TYPE_CHECKING:
    from collections.abc import Collection

    from rbee.server.text.output.reading import Reading, Waiting

PYTHON_START, LFM2_START, LFM2_END = "<|python_start|>", "<|tool_call_start|>", "<|tool_call_end|>"
_NAME = re.compile(r"[\w.\-]*")
_KEY = re.compile(r"[\w\-]*")
_BETWEEN = re.compile(r"[\s,]*")


class Pythonic(ToolFormat):
    """A list at the beginning of an answer, or behind a tag."""

    openers = frozenset({PYTHON_START})
    tags = closers = frozenset({"<|python_end|>"})

    def read_start(self, reading: Reading) -> Waiting[None]:
        yield from _read_list(reading, reading.tools)

    def read_calls(self, reading: Reading, opener: str) -> Waiting[None]:  # noqa: ARG002 - there is one
        yield from _read_list(reading)


class Lfm2(ToolFormat):
    """A list in tags; it may also hold JSON objects."""

    openers = frozenset({LFM2_START})
    tags = closers = frozenset({LFM2_END})

    def read_calls(self, reading: Reading, opener: str) -> Waiting[None]:  # noqa: ARG002 - there is one
        yield from _read_list(reading)


def read_keywords(reading: Reading) -> Waiting[None]:
    """Read KEY=VALUE, ... and the closing parenthesis, as the arguments of the call that has begun."""
    reader, write = reading.reader, reading.spans.arguments
    separator = "{"
    while (yield from reader.skip()) != ")":
        key = yield from reader.read_run(_KEY)
        if not key or (yield from reader.skip()) != "=":
            reading.spans.text(key)  # what no keyword names is no argument
            raise OddOutputError
        reader.read(1)
        write(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
        separator = ", "
        yield from reader.skip()
        yield from copy_python_value(reader, write, "),")
        if (yield from reader.skip()) == ",":
            reader.read(1)
        elif reader.next != ")":
            raise OddOutputError
    reader.read(1)
    if reading.spans.has_arguments:
        write("}")
    reading.spans.end_call()


def _read_list(reading: Reading, names: Collection[str] | None = None) -> Waiting[None]:
    """Read a list of calls of these tools, or of any; then it may be one of JSON objects."""
    reader, in_json = reading.reader, False

    def read_first() -> Waiting[None]:
        nonlocal in_json
        if (yield from reader.skip()) != "[":
            raise OddOutputError
        reader.read(1)
        in_json = (yield from reader.skip()) == "{" and names is None
        yield from JsonCall(reading).read() if in_json else _read_call(reading, names)

    if not (yield from attempt(reading, read_first())):
        return
    if in_json:
        yield from read_further(reading)
        return
    while (yield from reader.skip(_BETWEEN)) != "]":
        if not (yield from attempt(reading, _read_call(reading, names))):
            return
    reader.read(1)
    yield from reader.skip()


def _read_call(reading: Reading, names: Collection[str] | None) -> Waiting[None]:
    reader = reading.reader
    if names is None:
        name = yield from reader.read_run(_NAME)
        if not name or reader.next != "(":
            raise OddOutputError
        reader.read(1)
    else:
        word = yield from reader.read_one_of([f"{name}(" for name in names])
        name = word[:-1]
    reading.spans.call(name)
    yield from read_keywords(reading)
