"""How a protocol renders each moment of an answer: all that streams see of a protocol.

Owns the interface. A protocol makes one dialect per answer; `rbee.server.protocols` has them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.errors import Refusal
    from rbee.server.streams.outcome import Outcome
    from rbee.server.streams.pieces import CollectedChoice, Piece
    from rbee.transport import FrameTemplate


class Dialect(Protocol):
    """One answer in the words of a protocol.

    Its methods return bytes and change nothing, so that a frame that was lost can be rendered again. A frame is what
    one call returns; it may hold several events, or none.
    """

    answer_id: str  # no other client can guess it
    stream_headers: Sequence[tuple[bytes, bytes]]
    answer_headers: Sequence[tuple[bytes, bytes]]  # with the content-type, without the length
    keep_alive: bytes  # written after a long silence; empty for a protocol without comments

    def begin(self) -> bytes:
        """What comes before the first token; may be empty."""

    def piece(self, choice: int, piece: Piece, number: int) -> bytes:
        """The frame of a piece while more may come; `number` counts the frames of its choice, from 0."""

    def end(self, choice: int, piece: Piece, number: int, reason: int) -> bytes:
        """The last frame of a choice: its last piece, perhaps without text, and its FinishReason."""

    def finish(self, outcome: Outcome) -> bytes:
        """What follows the end of the last choice."""

    def error(self, refusal: Refusal, number: int, last: Piece | None = None) -> bytes:
        """The end of a stream that cannot go on, after `number` frames with text, `last` in the last one.

        Without `last` they were text, and nothing else.
        """

    def answer(self, choices: Sequence[CollectedChoice], outcome: Outcome) -> bytes:
        """The body of the answer that is not streamed."""

    def template(self) -> FrameTemplate | None:
        """The frames of the only choice for the native drain; None if they hold more than its slots.

        Filled in, they are the bytes of `piece`, `end` and `finish`. If their `end` is empty, `finish` is called, and
        may say what the slots do not.
        """
