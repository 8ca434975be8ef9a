"""What a choice shows: pieces, as they come, and the parts that they make up.

Owns their form. `rbee.server.streams.choices` makes pieces of tokens; a `rbee.server.streams.dialect` makes frames of
pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rbee.server.text.output import OutputKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.streams.records import TokenLogprob


class Part(NamedTuple):
    """A stretch of a choice's output: text, reasoning, or one tool call."""

    kind: OutputKind  # TEXT, REASONING, or TOOL_ARGUMENTS for a call
    text: str  # all of it, of a call the arguments; empty in a stream without `Generation.keep_text`
    name: str = ""  # of the tool


class Piece(NamedTuple):
    """What a choice shows at once.

    The choice has counted what came before, so that a dialect can render a piece alone.
    """

    text: str  # never empty, but in the last piece
    num_tokens: int  # output tokens of the choice so far
    committed_ns: int | None  # when the engine published the last of them, CLOCK_MONOTONIC; None without a token
    entries: list[TokenLogprob]  # the tokens that begin to show here, if they are to be listed
    kind: OutputKind = OutputKind.TEXT
    num_calls: int = 0  # tool calls of the choice so far: a piece of one is of the last
    part: int = 0  # which of the choice's parts it belongs to
    ended: Part | None = None  # the part before, if this piece begins another


class CollectedChoice(NamedTuple):
    """A choice of an answer that is not streamed."""

    pieces: list[Piece]  # all of it
    reason: int  # a FinishReason of `rbee.server.streams.outcome.ORDINARY_ENDS`
    prompt_entries: Sequence[TokenLogprob] = ()  # of its prompt's tokens, if the prompt is scored
    parsed: Sequence[Part] = ()  # its parts, if its output was parsed and shows anything

    @property
    def text(self) -> str:
        return "".join([piece.text for piece in self.pieces])

    @property
    def parts(self) -> Sequence[Part]:
        """At least one: an output that shows nothing is an empty text."""
        return self.parsed or [Part(OutputKind.TEXT, self.text)]

    @property
    def has_calls(self) -> bool:
        return any(part.kind is OutputKind.TOOL_ARGUMENTS for part in self.parsed)

    @property
    def entries(self) -> list[TokenLogprob]:
        return [entry for piece in self.pieces for entry in piece.entries]
