"""gpt-oss' format, harmony: an output is messages, each with a channel and perhaps a recipient.

Owns what each message is: to a function, a call; on the channel analysis, reasoning; any other, text. The preamble of
calls, on the channel commentary, is text, as it is written for the user. A recipient that is no function is not heeded.
The prompt ends behind <|start|>assistant.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rbee.server.text.output.marks import plain
from rbee.server.text.output.reading import EndOfOutputError, OddOutputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rbee.server.text.output.marks import Spelling
    from rbee.server.text.output.reading import Reader, Reading, Waiting, Write

_START, _CHANNEL, _CONSTRAIN, _MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
_ENDS = frozenset({"<|end|>", "<|call|>", "<|return|>"})
_NEXT = _ENDS | {_START, _CHANNEL}  # what ends a message
HARMONY_TAGS = _ENDS | {_START, _CHANNEL, _CONSTRAIN, _MESSAGE}
_HEADERS = (_START, _CHANNEL, _CONSTRAIN, _MESSAGE, " to=", "to=")  # what a header begins with
_LINE_BREAK = "\n"
_IN_HEADER = _ENDS | {_MESSAGE, _LINE_BREAK}
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_HEADER_WORDS = re.compile(r"<\|\w+\|>|\b(?:assistant|analysis|commentary|final|json|code)\b|\bto=\S*")
_FUNCTIONS = "functions."


class Harmony:
    """Reads outputs in this format."""

    def __init__(self, special_tokens: Iterable[str], *, has_reasoning: bool, has_calls: bool) -> None:
        self._has_reasoning = has_reasoning
        self._has_calls = has_calls
        self._hidden = HARMONY_TAGS | frozenset(special_tokens)

    def only_closes(self, rest: str, spelling: Spelling) -> bool:  # noqa: ARG002 - as that of `Tagged`
        """A call ends with the output, or where the next message begins."""
        return False

    def read(self, reading: Reading) -> Waiting[None]:
        """Read all messages."""
        reader, spans = reading.reader, reading.spans
        tag = ""  # that ended the message before; perhaps the next one's header begins with it
        while True:
            if tag not in (_START, _CHANNEL):
                tag = yield from _read_beginning(reader)
            header = (yield from _read_header(reading, tag)) if tag else ""
            write = self._begin(reading, header)
            keeps_tags = reading.keep_tags and write == spans.reasoning
            if keeps_tags:
                write(f"{header}{_MESSAGE}")
            while (tag := (yield from reader.copy_until(self._hidden, write))) not in _NEXT:
                pass
            if write == spans.arguments:
                spans.end_call()
            if keeps_tags and tag in _ENDS:
                spans.text(tag)
            spans.edge()

    def _begin(self, reading: Reading, header: str) -> Write:
        """Where the text of a message with this header goes."""
        spans = reading.spans
        if self._has_calls and (recipient := _RECIPIENT.search(header)):
            name = recipient[1].removeprefix(_FUNCTIONS)
            if name and (name != recipient[1] or name in reading.tools):
                spans.call(name)
                return spans.arguments
        channel = _CHANNEL_NAME.search(header)
        if self._has_reasoning and channel is not None and channel[1] == "analysis":
            return spans.reasoning
        return spans.text


def _read_beginning(reader: Reader) -> Waiting[str]:
    """The first word of the header that comes; nothing if a message has none."""
    try:
        return (yield from reader.read_one_of(_HEADERS))
    except OddOutputError:
        return ""


def _read_header(reading: Reading, beginning: str) -> Waiting[str]:
    """The header up to its end. What belongs in none is text: then the message has no header."""
    pieces = [beginning]
    mark = beginning
    try:
        if beginning != _MESSAGE:
            mark = yield from reading.reader.copy_until(_IN_HEADER, pieces.append)
    except EndOfOutputError:
        _show_rest(reading, "".join(pieces))
        raise
    if mark == _LINE_BREAK:
        _show_rest(reading, "".join(pieces) + mark)
        return ""
    return plain("".join(pieces))


def _show_rest(reading: Reading, header: str) -> None:
    rest = _HEADER_WORDS.sub("", plain(header))
    if rest.strip():
        reading.spans.text(rest)
