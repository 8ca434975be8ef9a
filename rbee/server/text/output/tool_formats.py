"""How models write tool calls: the formats that are tags around JSON.

Owns the tags of each format and what stands between them. Does not know reasoning or grammars.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rbee.server.text.output.json_calls import read_calls
from rbee.server.text.output.json_values import copy_value
from rbee.server.text.output.marks import SIGN
from rbee.server.text.output.reading import OddOutputError, attempt

if TYPE_CHECKING:
    from rbee.server.text.output.reading import Reading, Waiting

_NAME = re.compile(r"[\w.:/\-]*")
_CLOSERS = re.compile(r"[\s\]}]*")  # some models write one too many
_FENCE = re.compile(r"[\s\]}`]*")
_TO_USER = "all\n"


class ToolFormat:
    """One way of writing calls."""

    openers: frozenset[str] = frozenset()  # tags that calls follow
    tags: frozenset[str] = frozenset()  # the others, which are not shown
    closers: frozenset[str] = frozenset()  # those of them that stand behind a call and say nothing else

    def read_start(self, reading: Reading) -> Waiting[None]:  # noqa: ARG002 - most formats have tags
        """Read the calls that an answer begins with without a tag, if it does."""
        yield from ()

    def read_calls(self, reading: Reading, opener: str) -> Waiting[None]:
        """Read the calls that follow a tag; nothing of what is none."""
        raise NotImplementedError


class JsonTags(ToolFormat):
    """JSON objects of calls after a tag."""

    def __init__(self, openers: tuple[str, ...], tags: tuple[str, ...] = (), *, bare: bool = False) -> None:
        self.openers = frozenset(openers)
        self.tags = self.closers = frozenset(tags)
        self._bare = bare  # also without a tag, at the beginning of an answer

    def read_start(self, reading: Reading) -> Waiting[None]:
        if self._bare:
            yield from read_calls(reading, bare=True)

    def read_calls(self, reading: Reading, opener: str) -> Waiting[None]:  # noqa: ARG002 - all of them do the same
        yield from read_calls(reading)


class Mistral(ToolFormat):
    """[TOOL_CALLS], then a list of JSON objects, or a name, perhaps [CALL_ID] with an id, [ARGS] and the arguments."""

    openers = frozenset({"[TOOL_CALLS]"})
    tags = frozenset({"[ARGS]", "[CALL_ID]"})

    def read_calls(self, reading: Reading, opener: str) -> Waiting[None]:  # noqa: ARG002 - there is one
        if not (yield from read_calls(reading)) and (yield from attempt(reading, self._read_named(reading))):
            yield from reading.reader.skip(_CLOSERS)

    def _read_named(self, reading: Reading) -> Waiting[None]:
        reader = reading.reader
        name = yield from reader.read_run(_NAME)
        if not name:
            raise OddOutputError
        if (yield from reader.skip()) != "{" and (
            (yield from reader.read_one_of(("[ARGS]", "[CALL_ID]"))) == "[CALL_ID]"
        ):
            yield from reader.read_run(_NAME)
            yield from reader.read_one_of(("[ARGS]",))
        yield from _read_arguments(reading, name)


class FunctionTags(ToolFormat):
    """<function=NAME>{...}</function>: Functionary v3.1, and the custom format of Llama 3.1."""

    openers = frozenset({"<function="})
    tags = frozenset({"</function>", "<|python_tag|>"})
    closers = frozenset({"</function>"})

    def read_calls(self, reading: Reading, opener: str) -> Waiting[None]:  # noqa: ARG002 - there is one
        if (yield from attempt(reading, self._read_call(reading))):
            yield from reading.reader.skip(_CLOSERS)

    def _read_call(self, reading: Reading) -> Waiting[None]:
        reader = reading.reader
        name = yield from reader.read_run(_NAME)
        if not name or reader.next != ">":
            raise OddOutputError
        reader.read(1)
        if (yield from reader.skip()) in ("<", SIGN):  # the closing tag
            reading.spans.call(name)
            reading.spans.end_call()
        else:
            yield from _read_arguments(reading, name)


class Recipients(ToolFormat):
    """NAME and arguments on the next line, behind >>> or where the answer begins: Functionary v3.2.

    The recipient "all" is the user. What looks like a recipient, but is no tool of the request, is text.
    """

    openers = frozenset({">>>"})

    def read_start(self, reading: Reading) -> Waiting[None]:
        if (yield from attempt(reading, self._read_first(reading))):
            yield from reading.reader.skip(_CLOSERS)

    def read_calls(self, reading: Reading, opener: str) -> Waiting[None]:
        if (yield from attempt(reading, self._read_part(reading))):
            yield from reading.reader.skip(_CLOSERS)
        else:
            reading.spans.text(opener)

    def _read_first(self, reading: Reading) -> Waiting[None]:
        """Read the first part; behind reasoning there may be white space."""
        yield from reading.reader.skip()
        yield from self._read_part(reading)

    def _read_part(self, reading: Reading) -> Waiting[None]:
        """Read who is addressed, and a call's arguments."""
        words = [_TO_USER, *(f"{name}\n" for name in reading.tools)]
        word = yield from reading.reader.read_one_of(words)
        if word == _TO_USER:
            reading.spans.edge()
        else:
            yield from _read_arguments(reading, word[:-1])


class DeepSeek(ToolFormat):
    """DeepSeek's calls: a name, and arguments in JSON (V3.1), or the word function, a name and fenced JSON (V3, R1)."""

    openers = frozenset({"<｜tool▁call▁begin｜>"})
    closers = frozenset({"<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"})
    tags = frozenset({"<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"}) | closers

    def read_calls(self, reading: Reading, opener: str) -> Waiting[None]:  # noqa: ARG002 - there is one
        if (yield from attempt(reading, self._read_call(reading))):
            yield from reading.reader.skip(_FENCE)

    def _read_call(self, reading: Reading) -> Waiting[None]:
        reader = reading.reader
        yield from reader.skip()
        name = yield from reader.read_run(_NAME)
        yield from reader.skip()
        yield from reader.read_one_of(("<｜tool▁sep｜>",))
        if (yield from reader.skip()) != "{":
            kind, name = name, (yield from reader.read_run(_NAME))
            if kind != "function":
                raise OddOutputError
            if (yield from reader.skip()) == "`":
                yield from reader.read_one_of(("```json", "```\n"))
        if not name:
            raise OddOutputError
        yield from _read_arguments(reading, name)


def _read_arguments(reading: Reading, name: str) -> Waiting[None]:
    """Read the arguments of the call of `name`, an object."""
    if (yield from reading.reader.skip()) != "{":
        raise OddOutputError
    reading.spans.call(name)
    yield from copy_value(reading.reader, reading.spans.arguments)
    reading.spans.end_call()
