r"""JSON in an output, read while it comes, in linear time.

Owns where a value ends. A value is copied as the model wrote it, and each character as soon as it is known to belong to
it; what cannot stand in JSON ends it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from rbee.server.text.output.reading import OddOutputError, end_of

if TYPE_CHECKING:
    from rbee.server.text.output.reading import Reader, Waiting, Write

_SCALAR = re.compile(r"[0-9A-Za-z+\-._]+")  # also words that are none in JSON: a model may write True
_BETWEEN = re.compile(r"[\s,:0-9A-Za-z+\-._]*")  # what stands in a container outside of strings and other containers
_IN_STRING = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_CHARACTERS = re.compile(r'[^"\\]*')
_CLOSER = {"{": "}", "[": "]"}
# Escapes of several characters, longest first: what they look like, and one of them.
_ESCAPES = (
    (re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"), r"\ud83d\ude00"),
    (re.compile(r"\\u[0-9a-fA-F]{4}"), r"\u0000"),
)


def copy_value(reader: Reader, write: Write) -> Waiting[None]:
    """Write the next value.

    Raises:
        OddOutputError: what comes is no value, or the value breaks off. All of it is written.
    """
    first = yield from reader.peek()
    if first in _CLOSER or first == '"':
        yield from _copy_delimited(reader, write)
        return
    if not _SCALAR.match(first):
        raise OddOutputError
    while True:
        end = end_of(_SCALAR, reader.text, reader.at)
        if end > reader.at:
            write(reader.take(end))
        if reader.at < len(reader.text):
            return
        yield from reader.more()


def _copy_delimited(reader: Reader, write: Write) -> Waiting[None]:
    """Write the container or string that comes."""
    closers: list[str] = []
    in_string = escaping = complete = broken = False
    while True:
        text, at = reader.text, reader.at
        size = len(text)
        while at < size and not (complete or broken):
            if in_string:
                if escaping:
                    at += 1
                    escaping = False
                at = end_of(_IN_STRING, text, at)
                if at < size:
                    if text[at] == '"':
                        in_string = False
                        complete = not closers
                    else:
                        escaping = True
                    at += 1
                continue
            if closers:
                at = end_of(_BETWEEN, text, at)
                if at == size:
                    break
            character = text[at]
            if character == '"':
                in_string = True
            elif character in _CLOSER:
                closers.append(_CLOSER[character])
            elif character == closers[-1]:
                closers.pop()
                complete = not closers
            else:
                broken = True
                break
            at += 1
        if at > reader.at:
            write(reader.take(at))
        if complete:
            return
        if broken:
            raise OddOutputError
        yield from reader.more()


def copy_string(reader: Reader, write: Write) -> Waiting[None]:
    """Write what the string that comes says, without quotes and escapes.

    Raises:
        OddOutputError: it breaks off. What came is written.
    """
    reader.take(reader.at + 1)  # its quote
    while True:
        end = end_of(_CHARACTERS, reader.text, reader.at)
        if end > reader.at:
            write(reader.take(end))
        if reader.at == len(reader.text):
            yield from reader.more()
        elif reader.text[reader.at] == '"':
            reader.take(reader.at + 1)
            return
        else:
            write((yield from _read_escape(reader)))


def read_string(reader: Reader, allowed: frozenset[str] | None = None) -> Waiting[str]:
    """What the string that comes says.

    Raises:
        OddOutputError: it breaks off, or does not become one of `allowed`.
    """
    if allowed is None:
        pieces: list[str] = []
        yield from copy_string(reader, pieces.append)
        return "".join(pieces)
    reader.take(reader.at + 1)
    word = yield from reader.read_one_of([json.dumps(word, ensure_ascii=False)[1:] for word in allowed])
    return str(json.loads(f'"{word}'))


def _read_escape(reader: Reader) -> Waiting[str]:
    r"""What the escape that comes stands for: \uD83D\uDE00 are one character, \x is none and stays as it is."""
    for pattern, example in _ESCAPES:
        while True:
            rest = reader.text[reader.at : reader.at + len(example)]
            if len(rest) == len(example) or reader.ended or not pattern.fullmatch(rest + example[len(rest) :]):
                break
            yield from reader.more()
        if pattern.fullmatch(rest):
            return _unescaped(reader.take(reader.at + len(example)))
    while len(reader.text) - reader.at < 2:
        yield from reader.more()
    return _unescaped(reader.take(reader.at + 2))


def _unescaped(escape: str) -> str:
    try:
        character = str(json.loads(f'"{escape}"'))
    except ValueError:
        return escape
    return "\ufffd" if "\ud800" <= character <= "\udfff" else character
