r"""Python's literals in an output, as JSON, while they come.

Owns what each becomes. A string may have either kind of quotes, one or three of them; a quote that nothing of what is
around the string follows is a part of it, as models do not escape all. Escapes that JSON has too stay as they are.
Tuples are lists, and keys of objects strings. A word that is no number and no constant is a string.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from rbee.server.text.output.reading import EndOfOutputError, OddOutputError, end_of

if TYPE_CHECKING:
    from rbee.server.text.output.reading import Reader, Waiting, Write

_WORD = re.compile(r"[\w.+-]*")
_SPACE = re.compile(r"\s*")
_HEX = re.compile(r"[0-9a-fA-F]*")
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
_CHARACTERS = {quote: re.compile(rf"[^{quote}\\]*") for quote in "\"'"}
_BRACKETS = {"[": ("[", "]"), "(": ("[", ")"), "{": ("{", "}")}  # each in JSON, and what closes it
_CLOSED = {"]": "]", ")": "]", "}": "}"}
_INNER = ",:)]}"  # what may follow a string in a list or an object
_IN_JSON = frozenset('nrtbf"\\/')  # escapes of one letter that JSON has
_SIMPLE = {"'": "'", "\n": "", "a": "\\u0007", "v": "\\u000b"}  # others, in JSON
_LENGTHS = {"x": 2, "u": 4, "U": 8}  # escapes of a character by its number


def copy_python_value(reader: Reader, write: Write, following: str) -> Waiting[None]:
    """Write the next literal; `following` are the signs that may come behind it.

    Raises:
        OddOutputError: what comes is none, or it breaks off. What came is written.
    """
    closers: list[str] = []
    held = ""  # white space, and a comma that may be the last one
    last = ""  # sign
    while True:
        held += yield from reader.read_run(_SPACE)
        sign = reader.next
        if closers and sign == ",":
            held, last = held + reader.read(1), sign
            continue
        if closers and sign == closers[-1]:
            write(held.replace(",", "") + _CLOSED[reader.read(1)])
            held, last = "", closers.pop()
        else:
            if closers:
                write(held)
            held = ""
            if closers and sign == ":":
                write(reader.read(1))
                last = sign
                continue
            is_key = bool(closers) and closers[-1] == "}" and last in ("{", ",")
            last = sign
            if sign in _BRACKETS:
                opener, closer = _BRACKETS[reader.read(1)]
                write(opener)
                closers.append(closer)
                continue
            if sign in _CHARACTERS:
                yield from _copy_string(reader, write, _INNER if closers else following)
            else:
                word = yield from _read_word(reader)
                write(f'"{word}"' if is_key and not word.startswith('"') else word)
        if not closers:
            return


def _read_word(reader: Reader) -> Waiting[str]:
    """A number, a constant or a name, as JSON."""
    word = yield from reader.read_run(_WORD)
    if not word:
        raise OddOutputError
    word = _CONSTANTS.get(word, word)
    for number in (json.loads, _whole, float):
        try:
            value = number(word)
        except (ValueError, RecursionError):
            continue
        return word if number is json.loads else json.dumps(value)
    return json.dumps(word, ensure_ascii=False)


def _whole(word: str) -> int:
    """As Python has them: 0x1F, 1_000."""
    return int(word, 0)


def _copy_string(reader: Reader, write: Write, following: str) -> Waiting[None]:
    quote = reader.read(1)
    write('"')
    try:
        if (yield from reader.peek()) == quote:
            reader.read(1)
            if (yield from reader.peek()) == quote:
                reader.read(1)
                yield from _copy_long(reader, write, quote)
                return
            if (yield from _ends(reader, write, quote, following)):
                return
    except EndOfOutputError:
        write('"')
        raise
    while True:
        write(_escaped(reader.take(end_of(_CHARACTERS[quote], reader.text, reader.at))))
        if reader.at == len(reader.text):
            yield from reader.more()
        elif reader.next == "\\":
            write((yield from _read_escape(reader)))
        else:
            reader.read(1)
            if (yield from _ends(reader, write, quote, following)):
                return


def _ends(reader: Reader, write: Write, quote: str, following: str) -> Waiting[bool]:
    """Whether the quote that was read ends the string, which is written then; else it is a part of it."""
    try:
        space = yield from reader.read_run(_SPACE)
    except EndOfOutputError:
        write('"')
        raise
    if reader.next in following:
        write('"')
        return True
    write(_escaped(quote + space))
    return False


def _copy_long(reader: Reader, write: Write, quote: str) -> Waiting[None]:
    """What stands between three quotes."""
    while True:
        write(_escaped(reader.take(end_of(_CHARACTERS[quote], reader.text, reader.at))))
        if reader.at == len(reader.text):
            yield from reader.more()
        elif reader.next == "\\":
            write((yield from _read_escape(reader)))
        else:
            try:
                yield from reader.read_one_of((3 * quote,))
            except OddOutputError:
                write(_escaped(reader.read(1)))
            else:
                write('"')
                return


def _read_escape(reader: Reader) -> Waiting[str]:
    """The escape that comes, in JSON."""
    reader.read(1)
    letter = yield from reader.peek()
    reader.read(1)
    if letter in _IN_JSON:
        return f"\\{letter}"
    if letter not in _LENGTHS:
        return _SIMPLE.get(letter, _escaped(f"\\{letter}"))
    digits = ""
    while len(digits) < _LENGTHS[letter] and _HEX.fullmatch((yield from reader.peek())):
        digits += reader.read(1)
    if len(digits) < _LENGTHS[letter]:
        return _escaped(f"\\{letter}{digits}")
    if letter == "u":
        return f"\\u{digits}"  # perhaps one half of a character, as JSON has them too
    number = int(digits, 16)
    return _escaped(chr(number) if number < 0x11_0000 and not 0xD800 <= number < 0xE000 else "\ufffd")


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
