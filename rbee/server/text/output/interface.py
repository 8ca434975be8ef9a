"""What is seen of output formats: what the parts of an output are, how they come, and what the model may write.

Owns the interface. Does not know any format.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rbee.server.text.output.tools import Tool

ToolChoice = Literal["auto", "required"]


class OutputKind(Enum):
    """What a part of an output is."""

    TEXT = auto()  # the answer itself
    REASONING = auto()  # what the model thought before it
    TOOL_NAME = auto()
    TOOL_ARGUMENTS = auto()


class Span(NamedTuple):
    """A part of an output, of one kind."""

    kind: OutputKind
    text: str  # never empty
    call: int = 0  # which tool call, from 0, for the two kinds that have one


class ReasoningTags(NamedTuple):
    """The tags around reasoning, by their tokens."""

    begin_ids: tuple[int, ...]  # those that are tokens
    end_id: int


class OutputParser(Protocol):
    """Reads one output as it comes, in linear time.

    A call is one TOOL_NAME span with the whole name, then TOOL_ARGUMENTS spans, which together are the JSON text of its
    arguments. No tag is in any span, but those of the reasoning if they are kept.
    """

    def push(self, text: str) -> list[Span]:
        """The spans that are certain with this text, special tokens spelled out behind `marks.SIGN`."""

    def finish(self) -> list[Span]:
        """The spans of what was withheld, once no further text comes."""


class OutputFormat(Protocol):
    """How a model writes its reasoning and its tool calls."""

    @property
    def token_names(self) -> Mapping[int, str]:
        """Tokens whose names have a meaning, by their ids; the same letters in other tokens have none."""

    @property
    def has_reasoning(self) -> bool:
        """Whether outputs may have some."""

    @property
    def reasoning_tags(self) -> ReasoningTags | None:
        """Its tags, if it has one closing tag and that is a token; else None."""

    def parser(self, *, tools: Sequence[Tool], reasoning_open: bool, keep_tags: bool = False) -> OutputParser:
        """A fresh parser; without tools it finds no calls.

        Args:
            tools: those that may be called.
            reasoning_open: the prompt ends inside of the reasoning.
            keep_tags: the tags of the reasoning are shown, as the model writes them: the one in front of it as
                reasoning, the one behind it as text.
        """

    def grammar(
        self,
        tools: Sequence[Tool],
        *,
        choice: ToolChoice,
        parallel: bool,
        answer: str | None,
        reasoning_open: bool = False,
        others_shown: bool = False,
    ) -> str | None:
        """A grammar of the whole output, in llguidance's Lark; None if there is nothing to constrain.

        The reasoning in front is free. With "required" there is at least one call, of one of `tools`. With "auto" the
        text is free, or `answer` if that is given, and calls follow the schemas. Without `parallel` there is at most
        one call.

        Args:
            tools: those that may be called.
            choice: whether there must be a call.
            parallel: there may be several.
            answer: the body of a Lark rule that an answer without calls follows.
            reasoning_open: the prompt ends inside of the reasoning.
            others_shown: the prompt shows other tools too, which a model that is free might call.
        """
