"""Calls that are JSON objects: {"name": ..., "arguments": {...}}, as most formats have them between their tags.

Owns what makes such an object a call, and what becomes of one that is broken. Does not know the tags.

* The name is "name", the arguments are "arguments" or "parameters", in either order; arguments that come first are held
  until the name is there. Both may stand in an object "function". Other members are skipped.
* Arguments are the model's own text. A JSON string in their place is read as the text of the arguments; null, or no
  arguments at all, are {}.
* Before its name is complete, an object that cannot be a call is text, without the tag in front of it. After that it is
  a call: one that breaks off keeps the arguments that came.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rbee.server.text.output.json_values import copy_string, copy_value, read_string
from rbee.server.text.output.reading import OddOutputError, attempt

if TYPE_CHECKING:
    from rbee.server.text.output.reading import Reading, Waiting

_ARGUMENTS = frozenset({"arguments", "parameters"})
_BARE_KEYS = _ARGUMENTS | {"name", "function", "type", "id"}
_NEXT = re.compile(r"[\s,;\]}]*")  # between two calls, and behind the last one


def read_calls(reading: Reading, *, bare: bool = False) -> Waiting[bool]:
    """Read an object, a list of them, or several one after the other. False, and nothing, if the first is no call.

    `bare`: no tag says that there is a call, so that only an object that names a tool of the request is one.
    """
    if not (yield from attempt(reading, _read_first(reading, bare=bare))):
        return False
    yield from read_further(reading, bare=bare)
    return True


def read_further(reading: Reading, *, bare: bool = False) -> Waiting[None]:
    """Read the objects of calls that follow one, and what stands between and behind them."""
    while (yield from reading.reader.skip(_NEXT)) == "{":
        if not (yield from attempt(reading, JsonCall(reading, bare=bare).read())):
            return


def _read_first(reading: Reading, *, bare: bool) -> Waiting[None]:
    if (yield from reading.reader.skip()) == "[":
        reading.reader.read(1)
        yield from reading.reader.skip()
    yield from JsonCall(reading, bare=bare).read()


class JsonCall:
    """One call."""

    def __init__(self, reading: Reading, *, bare: bool = False) -> None:
        self._reader = reading.reader
        self._spans = reading.spans
        self._keys = _BARE_KEYS if bare else None
        self._names = frozenset(reading.tools) if bare else None
        self._is_named = False
        self._is_nested = False
        self._held: list[str] = []  # arguments that came before the name

    def read(self) -> Waiting[None]:
        """Read the object.

        Raises:
            OddOutputError: it breaks off or names no tool.
        """
        yield from self._read_object()
        if not self._is_named:
            raise OddOutputError
        self._spans.end_call()

    def _read_object(self) -> Waiting[None]:
        reader = self._reader
        yield from self._expect("{")
        if (yield from reader.skip()) == "}":
            reader.read(1)
            return
        while True:
            yield from self._expect('"', read=False)
            key = yield from read_string(reader, self._keys)
            yield from self._expect(":")
            yield from self._read_member(key, (yield from reader.skip()))
            if (yield from reader.skip()) == "}":
                reader.read(1)
                return
            yield from self._expect(",")

    def _read_member(self, key: str, first: str) -> Waiting[None]:
        """Read the value of `key`, which begins with the character `first`."""
        if key == "name" and first == '"' and not self._is_named:
            name = yield from read_string(self._reader, self._names)
            if not name:
                raise OddOutputError
            self._spans.call(name)
            self._is_named = True
            self._spans.arguments("".join(self._held))
        elif key in _ARGUMENTS and first == '"':
            yield from copy_string(self._reader, self._write)
        elif key in _ARGUMENTS and first == "n":
            yield from copy_value(self._reader, _ignore)  # null
        elif key in _ARGUMENTS:
            yield from copy_value(self._reader, self._write)
        elif key == "function" and first == "{" and not self._is_nested:
            self._is_nested = True
            yield from self._read_object()
        else:
            yield from copy_value(self._reader, _ignore)

    def _write(self, piece: str) -> None:
        if self._is_named:
            self._spans.arguments(piece)
        else:
            self._held.append(piece)

    def _expect(self, character: str, *, read: bool = True) -> Waiting[None]:
        if (yield from self._reader.skip()) != character:
            raise OddOutputError
        if read:
            self._reader.read(1)


def _ignore(_piece: str) -> None:
    """What no call has a place for."""
