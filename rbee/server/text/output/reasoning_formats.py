"""How models write their reasoning: the formats that have tags around it.

Owns the tags, and what becomes of one at an odd place:

* Reasoning begins where the prompt says so, or with its tag where no text has come yet. Further on an opening tag is
  only taken out of the text. A model may leave the reasoning out.
* It ends with its closing tag or with the output: one that is never closed is all that there is.
* A tag inside of the reasoning, also one of a tool call, is taken out: what a model considers it does not do.
* Where tags are kept, all of these stay where they are, and nothing else changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rbee.server.text.output.reading import OddOutputError

if TYPE_CHECKING:
    from rbee.server.text.output.reading import Reading, Waiting


@dataclass(frozen=True)
class ReasoningFormat:
    """Tags around reasoning."""

    openers: frozenset[str] = frozenset()
    closers: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()  # others that are not shown
    opening_phrases: frozenset[str] = frozenset()  # tags that are plain words: they count where the output begins
    closing_phrases: frozenset[str] = frozenset()  # and inside of the reasoning

    @property
    def tokens(self) -> frozenset[str]:
        """All tags that are no phrases."""
        return self.openers | self.closers | self.tags

    def read_start(self, reading: Reading, hidden: frozenset[str], tags: frozenset[str]) -> Waiting[None]:
        """Read the reasoning that a phrase at the beginning of the output opens; see `read`."""
        reader = reading.reader
        reader.keep()
        try:
            yield from reader.skip()
            phrase = yield from reader.read_one_of(self.opening_phrases)
        except OddOutputError:
            reader.unread()
            return
        reader.forget()
        yield from self.read(reading, hidden, tags, phrase)

    def read(self, reading: Reading, hidden: frozenset[str], tags: frozenset[str], opener: str = "") -> Waiting[None]:
        """Read reasoning up to its end.

        Args:
            reading: of the output.
            hidden: all that must not be shown in it.
            tags: those of them that stay where tags are kept.
            opener: what stands in front of it in the output.
        """
        spans, kept = reading.spans, tags if reading.keep_tags else frozenset()
        spans.edge()
        if reading.keep_tags and opener:
            spans.reasoning(opener)
        ends = self.closers | self.closing_phrases
        while (tag := (yield from reading.reader.copy_until(hidden, spans.reasoning))) not in ends:
            if tag in kept:
                spans.reasoning(tag)
        if reading.keep_tags:
            spans.text(tag)
        spans.edge()


def _phrases(what: str) -> frozenset[str]:
    return frozenset(f"{here} my {what}:" for here in ("Here is", "Here's"))


NO_REASONING = ReasoningFormat()
THINK = ReasoningFormat(frozenset({"<think>"}), frozenset({"</think>"}))
MAGISTRAL = ReasoningFormat(frozenset({"[THINK]"}), frozenset({"[/THINK]"}))
GRANITE = ReasoningFormat(
    frozenset({"<think>"}),
    frozenset({"</think>"}),
    frozenset({"<response>", "</response>"}),
    _phrases("thought process"),
    _phrases("response"),
)
