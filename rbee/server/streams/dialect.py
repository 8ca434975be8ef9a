"""What a protocol says at each moment of an answer: the only thing that streams know of it.

Owns the interface. A protocol makes one dialect per answer; `rbee.server.protocols` has them.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.errors import Refusal
    from rbee.server.streams.outcome import Outcome
    from rbee.server.streams.records import TokenLogprob
    from rbee.transport import FrameTemplate


class PieceKind(Enum):
    """What the text of a piece is a part of."""

    TEXT = auto()  # the answer itself


class Piece(NamedTuple):
    """What a choice shows at once.

    Attributes:
        text: never empty, but in the last piece.
        num_tokens: output tokens of the choice so far.
        committed_ns: when the engine published the last of them, CLOCK_MONOTONIC; None if no token brought this piece.
        entries: the tokens that begin to show here, if logprobs were asked for.
        kind: of the text.
    """

    text: str
    num_tokens: int
    committed_ns: int | None
    entries: list[TokenLogprob]
    kind: PieceKind = PieceKind.TEXT


class CollectedChoice(NamedTuple):
    """A choice of an answer that is not streamed.

    Attributes:
        pieces: all of it.
        reason: the FinishReason, one of `rbee.server.streams.outcome.ORDINARY_ENDS`.
    """

    pieces: list[Piece]
    reason: int

    @property
    def text(self) -> str:
        """All of its text."""
        return "".join([piece.text for piece in self.pieces])

    @property
    def entries(self) -> list[TokenLogprob]:
        """Of all its tokens."""
        return [entry for piece in self.pieces for entry in piece.entries]


class Dialect(Protocol):
    """One answer in the words of a protocol.

    Its methods return bytes and change nothing, so that a frame that was lost can be rendered again. A frame is what
    one call returns; it may hold several events, or none.

    Attributes:
        answer_id: the answer's name, which no other client can guess.
        stream_headers: of the response that streams it.
        answer_headers: of the response that does not, besides its length; with its content-type.
        keep_alive: written after a long silence; empty for a protocol that knows no comments.
    """

    answer_id: str
    stream_headers: Sequence[tuple[bytes, bytes]]
    answer_headers: Sequence[tuple[bytes, bytes]]
    keep_alive: bytes

    def begin(self) -> bytes:
        """What comes before the first token; may be empty."""

    def piece(self, choice: int, piece: Piece, number: int) -> bytes:
        """The frame of a piece while more may come; `number` counts the frames of its choice, from 0."""

    def end(self, choice: int, piece: Piece, number: int, reason: int) -> bytes:
        """The last frame of a choice: its last piece, which may have no text, and its FinishReason."""

    def finish(self, outcome: Outcome) -> bytes:
        """What comes after the last choice has ended."""

    def error(self, refusal: Refusal) -> bytes:
        """The end of a stream that cannot go on, in place of what is still missing."""

    def answer(self, choices: Sequence[CollectedChoice], outcome: Outcome) -> bytes:
        """The body of the answer that is not streamed."""

    def template(self) -> FrameTemplate | None:
        """The frames of the only choice for the native drain; None if they hold more than its slots.

        Filled in, they are the bytes that `piece`, `end` and `finish` return.
        """
