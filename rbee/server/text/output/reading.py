"""Reading an output that is not complete yet, as if it were: what the formats are written with.

Owns what is read and what was read, and the spans that come of it. A format is a generator: wherever it needs text
that has not come yet it yields, and goes on with the next text. Does not know any format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from rbee.server.text.output.interface import OutputKind, Span
from rbee.server.text.output.marks import plain

if TYPE_CHECKING:
    from rbee.server.text.output.marks import Spelling
    from rbee.server.text.output.tools import Tool

_T = TypeVar("_T")
Waiting = Generator[None, None, _T]  # returns a _T once the text for it has come
Write = Callable[[str], object]
_MOST_SECOND_TRIES = 16  # in an output
_SPACE = re.compile(r"\s*")


class OddOutputError(Exception):
    """What follows is not what it would have to be."""


class EndOfOutputError(OddOutputError):
    """Nothing follows."""


def end_of(pattern: re.Pattern[str], text: str, start: int) -> int:
    """Where a match ends that begins at `start`; `start` without one."""
    match = pattern.match(text, start)
    return start if match is None else match.end()


class Reader:
    """The text of an output from `at` on; more of it comes."""

    def __init__(self, spelling: Spelling) -> None:
        self._spelling = spelling
        self.text = ""
        self.at = 0
        self.ended = False
        self._kept: list[str] | None = None  # what was read since `keep` of texts that came before
        self._kept_from = 0  # where in this text
        self._before = 0  # characters of the output before this text
        self._furthest = 0  # characters of the output that have been read, and perhaps unread
        self._num_second_tries = 0

    def feed(self, text: str) -> None:
        if self._kept is not None:
            self._kept.append(self.text[self._kept_from : self.at])
            self._kept_from = 0
        self.text = self.text[self.at :] + text
        self._before += self.at
        self.at = 0

    def more(self) -> Waiting[None]:
        """Wait for more text.

        Raises:
            EndOfOutputError: there is none.
        """
        if self.ended:
            raise EndOfOutputError
        yield

    def take(self, end: int) -> str:
        """The text up to `end`, which is read with this."""
        piece = self.text[self.at : end]
        self.at = end
        return piece

    @property
    def next(self) -> str:
        """The next character, which has come."""
        return self.text[self.at]

    def read(self, length: int) -> str:
        """The next characters, which have come."""
        return self.take(self.at + length)

    def keep(self) -> None:
        """From here on, what is read can be unread."""
        self._kept = []
        self._kept_from = self.at

    def forget(self) -> None:
        """What was read stays read."""
        self._kept = None

    def unread(self) -> None:
        """Go back to where `keep` was called."""
        assert self._kept is not None
        self._furthest = max(self._furthest, self._before + self.at)
        self.at = self._kept_from
        if self._kept:
            before = "".join(self._kept)
            self.text = before + self.text[self.at :]
            self._before -= len(before) - self.at
            self.at = 0
        self._kept = None

    def may_try(self) -> bool:
        """Whether to try to read what may have to be unread.

        Not too often what was read before, else an output of tags that open nothing would take quadratic time.
        """
        if self._before + self.at >= self._furthest:
            return True
        self._num_second_tries += 1
        return self._num_second_tries <= _MOST_SECOND_TRIES

    def peek(self) -> Waiting[str]:
        """The next character, which stays unread."""
        while self.at == len(self.text):
            yield from self.more()
        return self.text[self.at]

    def skip(self, pattern: re.Pattern[str] = _SPACE) -> Waiting[str]:
        """Read characters of a class, white space by default; then peek."""
        while True:
            self.take(end_of(pattern, self.text, self.at))
            if self.at < len(self.text):
                return self.text[self.at]
            yield from self.more()

    def read_run(self, pattern: re.Pattern[str]) -> Waiting[str]:
        """The characters of a class up to the first other one."""
        pieces = []
        while True:
            pieces.append(self.take(end_of(pattern, self.text, self.at)))
            if self.at < len(self.text):
                return "".join(pieces)
            yield from self.more()

    def read_one_of(self, words: Collection[str]) -> Waiting[str]:
        """Whichever of `words`, tags among them, comes now; none of them begins another one.

        Raises:
            OddOutputError: none of them; nothing has been read.
        """
        spelled = [self._spelling.of(word) for word in words]
        longest = max(map(len, spelled), default=0)
        while True:
            rest = self.text[self.at : self.at + longest]
            possible = [word for word in spelled if word.startswith(rest[: len(word)])]
            if not possible:
                raise OddOutputError
            for word in possible:
                if len(rest) >= len(word):
                    return plain(self.take(self.at + len(word)))
            yield from self.more()

    def copy_until(self, tags: frozenset[str], write: Write) -> Waiting[str]:
        """Write the text up to the first of `tags`, which is read and returned.

        Raises:
            EndOfOutputError: none came; all text is written.
        """
        marks = self._spelling.marks(tags)
        while True:
            end, mark = marks.find(self.text, self.at, ended=self.ended)
            if end > self.at:
                write(self.take(end))
            if mark is not None:
                return plain(self.take(end + len(mark)))
            yield from self.more()


class Spans:
    """The spans of an output.

    White space stays as the model wrote it, as in vLLM. But a stretch of text or reasoning between two tags, or between
    a tag and an end of the output, that is nothing but white space is no text.
    """

    def __init__(self) -> None:
        self._found: list[tuple[OutputKind, int, list[str]]] = []  # since they were taken last
        self.num_calls = 0  # that have begun
        self._had_tag = False
        self._blank: list[str] = []  # what the stretch begins with, as long as that is white space
        self._kind = OutputKind.TEXT  # of the stretch
        self.begun = False  # the stretch has more than white space
        self.has_arguments = False  # the last call
        self.after_call = False  # which is complete, and nothing but tags and white space came since

    def edge(self) -> None:
        """A tag: a stretch ends here, another one may begin."""
        self._had_tag = True
        self._blank.clear()
        self.begun = False

    def text(self, piece: str) -> None:
        self._stretch(OutputKind.TEXT, piece)

    def reasoning(self, piece: str) -> None:
        self._stretch(OutputKind.REASONING, piece)

    def call(self, name: str) -> None:
        """A call begins."""
        name = plain(name)
        self.edge()
        self.num_calls += 1
        self.has_arguments = self.after_call = False
        self._add(OutputKind.TOOL_NAME, name, self.num_calls - 1)

    def arguments(self, piece: str) -> None:
        """A part of the arguments of the call that began last."""
        piece = plain(piece)
        if piece:
            self.has_arguments = True
            self._add(OutputKind.TOOL_ARGUMENTS, piece, self.num_calls - 1)

    def end_call(self) -> None:
        """The call is complete. One that says nothing of arguments has none."""
        if not self.has_arguments:
            self.arguments("{}")
        self.after_call = True

    def take(self) -> list[Span]:
        """Those that were found since then."""
        found, self._found = self._found, []
        return [Span(kind, "".join(pieces), call) for kind, call, pieces in found]

    def finish(self) -> None:
        """The output is complete."""
        if self._blank and not self._had_tag:
            self._add(self._kind, "".join(self._blank))
            self._blank.clear()

    def _stretch(self, kind: OutputKind, piece: str) -> None:
        self._kind = kind
        piece = plain(piece)
        if not piece:
            return
        if not self.begun:
            if piece.isspace():
                self._blank.append(piece)
                return
            self.begun, self.after_call = True, False
            if self._blank:
                piece = "".join(self._blank) + piece
                self._blank.clear()
        self._add(kind, piece)

    def _add(self, kind: OutputKind, piece: str, call: int = 0) -> None:
        if self._found:
            last_kind, last_call, pieces = self._found[-1]
            if last_kind is kind and last_call == call:
                pieces.append(piece)
                return
        self._found.append((kind, call, [piece]))


class Reading(NamedTuple):
    """One output that is being read."""

    reader: Reader
    spans: Spans
    tools: Mapping[str, Tool]  # by their names
    reasoning_open: bool  # the prompt ends inside of the reasoning
    keep_tags: bool = False  # those of the reasoning are shown


def attempt(reading: Reading, steps: Waiting[None]) -> Waiting[bool]:
    """Take these steps to read a call. Whether it was one: if none began, everything is unread."""
    reader, num_calls = reading.reader, reading.spans.num_calls
    if not reader.may_try():
        return False
    reader.keep()
    try:
        yield from steps
    except OddOutputError:
        if reading.spans.num_calls == num_calls:
            reader.unread()
            return False
    reader.forget()
    return True


def _never(_rest: str) -> bool:
    return False


class GeneratorParser:
    """An OutputParser that is a generator, which goes on until it raises EndOfOutputError.

    What `only_closes` says of the last characters counts behind a call: they are left out then.
    """

    def __init__(
        self,
        read: Callable[[Reading], Waiting[None]],
        tools: Mapping[str, Tool],
        spelling: Spelling,
        *,
        reasoning_open: bool,
        keep_tags: bool = False,
        only_closes: Callable[[str], bool] = _never,
    ) -> None:
        self._only_closes = only_closes
        self._reader = Reader(spelling)
        self._spans = Spans()
        self._waiting = read(Reading(self._reader, self._spans, tools, reasoning_open, keep_tags))
        next(self._waiting)

    def push(self, text: str) -> list[Span]:
        self._reader.feed(text)
        next(self._waiting)
        return self._spans.take()

    def finish(self) -> list[Span]:
        reader = self._reader
        reader.ended = True
        if self._spans.after_call and self._only_closes(reader.text[reader.at :]):
            reader.take(len(reader.text))
        try:
            next(self._waiting)
        except EndOfOutputError:
            self._spans.finish()
        return self._spans.take()
