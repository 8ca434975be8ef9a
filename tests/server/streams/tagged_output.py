"""A way of writing reasoning and tool calls that no model has, for tests of what is made of it.

<think>reasoning</think>text<tool_call>name{"json": "arguments"}</tool_call>. What is not closed goes on to the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rbee.server.streams.generation import OutputPlan
from rbee.server.text.output import OutputKind, Span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rbee.server.text.output import Tool
    from rbee.server.text.output.interface import ToolChoice

SPECIAL = "<|end|>"  # a special token that is no tag

_END = "</tool_call>"

# By what is being read: the tags that may come, what is read behind each, and what of it is shown there.
_TAGS: dict[OutputKind, list[tuple[str, OutputKind, str]]] = {
    OutputKind.TEXT: [
        ("<think>", OutputKind.REASONING, ""),
        ("<tool_call>", OutputKind.TOOL_NAME, ""),
        (SPECIAL, OutputKind.TEXT, ""),
    ],
    OutputKind.REASONING: [("</think>", OutputKind.TEXT, "")],
    OutputKind.TOOL_NAME: [("{", OutputKind.TOOL_ARGUMENTS, "{")],
    OutputKind.TOOL_ARGUMENTS: [(_END, OutputKind.TEXT, "")],
}


class TaggedParser:
    """Holds back what may be the beginning of a tag, and a name until it is whole."""

    def __init__(self, kind: OutputKind, *, keep_tags: bool) -> None:
        self._kind = kind
        self._kept = ("<think>", "</think>") if keep_tags else ()
        self._call = -1
        self._rest = ""

    def push(self, text: str) -> list[Span]:
        """See `OutputParser`."""
        spans: list[Span] = []
        self._rest += text
        while True:
            found = [(at, tag) for tag in _TAGS[self._kind] if (at := self._rest.find(tag[0])) >= 0]
            if not found:
                break
            at, (tag, kind, shown) = min(found, key=lambda one: one[0])
            spans += self._spans(self._rest[:at])
            self._rest = shown + self._rest[at + len(tag) :]
            self._kind = kind
            self._call += kind is OutputKind.TOOL_NAME
            spans += self._spans(tag) if tag in self._kept else []
        held = self._held()
        spans += self._spans(self._rest[: len(self._rest) - held])
        self._rest = self._rest[len(self._rest) - held :]
        return spans

    def finish(self) -> list[Span]:
        """See `OutputParser`."""
        return self._spans(self._rest)

    def _held(self) -> int:
        """How much of the rest may be the beginning of a tag."""
        if self._kind is OutputKind.TOOL_NAME:
            return len(self._rest)
        lengths = [0]
        for tag, _, _ in _TAGS[self._kind]:
            lengths += [length for length in range(1, len(tag)) if self._rest.endswith(tag[:length])]
        return max(lengths)

    def _spans(self, text: str) -> list[Span]:
        is_call = self._kind in {OutputKind.TOOL_NAME, OutputKind.TOOL_ARGUMENTS}
        return [Span(self._kind, text, self._call if is_call else 0)] if text else []


class TaggedFormat:
    """See `OutputFormat`. Characters decide what a tag is."""

    token_names: Mapping[int, str] = {}
    has_reasoning = True
    reasoning_tags = None

    def parser(
        self,
        *,
        tools: Sequence[Tool],  # noqa: ARG002 - any may be called
        reasoning_open: bool,
        keep_tags: bool = False,
    ) -> TaggedParser:
        """A fresh one."""
        return TaggedParser(OutputKind.REASONING if reasoning_open else OutputKind.TEXT, keep_tags=keep_tags)

    def grammar(
        self,
        tools: Sequence[Tool],
        *,
        choice: ToolChoice,
        parallel: bool,
        answer: str | None,
        reasoning_open: bool = False,
        others_shown: bool = False,
    ) -> None:
        """None of these tests has one."""
        raise NotImplementedError


PLAN = OutputPlan(format=TaggedFormat())
# Reasoning, text, two calls and text, in tokens.
ANSWER = ["<think>Hm", ".</think>", "So: <tool_call>add{", '"a": 1}', "</tool_call>", "<tool_call>f", "{}", _END + "!"]


class WordTokens:
    """A detokenizer of one choice, whose tokens are these strings in order."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words

    def push(self, token_id: int) -> str:
        """The word."""
        return self._words[token_id]

    def flush(self) -> str:
        """No word is incomplete."""
        return ""

    def fork(self) -> WordTokens:
        """WordTokens have no state."""
        return self


def cuts(text: str) -> list[list[str]]:
    """A text as tokens: cut once, at every place, then in characters, then whole."""
    twice = [[text[:at], text[at:]] for at in range(1, len(text))]
    return [*twice, list(text), [text]]
