"""Outputs that are reasoning, then text with tool calls in it: all formats but harmony."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rbee.server.text.output.marks import Spelling
    from rbee.server.text.output.reading import Reading, Waiting
    from rbee.server.text.output.reasoning_formats import ReasoningFormat
    from rbee.server.text.output.tool_formats import ToolFormat


class Tagged:
    """Reads outputs with these tags; special tokens that are none of them are taken out."""

    def __init__(self, reasoning: ReasoningFormat, calls: ToolFormat | None, special_tokens: Iterable[str]) -> None:
        self._reasoning = reasoning
        self._calls = calls
        self._tags = reasoning.tokens
        if calls is not None:
            self._tags |= calls.openers | calls.tags
        hidden = self._tags | frozenset(special_tokens)
        self._in_text = hidden
        self._in_reasoning = hidden | reasoning.closing_phrases
        self._closers = reasoning.closers if calls is None else reasoning.closers | calls.closers

    def only_closes(self, rest: str, spelling: Spelling) -> bool:
        """Whether a text is the beginning of closing tags, and of no others."""
        tags = [tag for tag in self._in_text if spelling.of(tag).startswith(rest)] if rest else []
        return bool(tags) and self._closers.issuperset(tags)

    def read(self, reading: Reading) -> Waiting[None]:
        """Read all of the output."""
        reasoning, calls = self._reasoning, self._calls
        if reading.reasoning_open and reasoning.closers:
            yield from reasoning.read(reading, self._in_reasoning, self._tags)
        elif reasoning.opening_phrases:
            yield from reasoning.read_start(reading, self._in_reasoning, self._tags)
        if calls is not None:
            yield from calls.read_start(reading)
        while True:
            tag = yield from reading.reader.copy_until(self._in_text, reading.spans.text)
            if calls is not None and tag in calls.openers:
                yield from calls.read_calls(reading, tag)
            elif tag in reasoning.openers and not reading.spans.begun:
                yield from reasoning.read(reading, self._in_reasoning, self._tags, tag)
                if calls is not None:
                    yield from calls.read_start(reading)
            elif reading.keep_tags and tag in reasoning.tokens:
                reading.spans.text(tag)
