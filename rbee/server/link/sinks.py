"""Where the tokens of one sequence go: what a drain has for it, who hears of that, and what its end means.

Owns the two interfaces between the drain loop (`rbee.server.link.engine_client`) and the replies. Does not know either.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias

from rbee.messages import FinishReason
from rbee.server.errors import ApiError, deadline_passed


class TokenBatch(NamedTuple):
    """What one drain has for one sequence; the lists are parallel.

    Attributes:
        token_ids: in order; one with the bit `rbee.messages.SIDE_RECORD` is no output, see there.
        logprobs: natural logarithms, NaN for a sequence that asked for none.
        commit_ns: when the engine published each, CLOCK_MONOTONIC.
        reason: a FinishReason, or 0 if more may come.
        cached_tokens: of the prompt, found in the prefix cache; known when there is a reason, 0 before.
    """

    token_ids: list[int]
    logprobs: list[float]
    commit_ns: list[int]
    reason: int = 0
    cached_tokens: int = 0

    def without_first(self) -> TokenBatch:
        """The same without its first record."""
        return self._replace(token_ids=self.token_ids[1:], logprobs=self.logprobs[1:], commit_ns=self.commit_ns[1:])


class TokenSink(Protocol):
    """Where one sequence's tokens go. Called from the drain loop; it must not block."""

    def deliver(self, batch: TokenBatch) -> None:
        """The next tokens, the end, or both."""

    def fail(self, error: ApiError) -> None:
        """No more tokens will come, and this is why."""


class DirectSink(Protocol):
    """What hears of a sequence whose tokens the drain sends itself. As a TokenSink, it must not block."""

    def on_blocked(self, rest: bytes) -> None:
        """The socket did not take `rest`; the ring is paused until `resume`, if it has not ended."""

    def on_broken(self) -> None:
        """The socket is of no use any more."""

    def on_finish(self, reason: int, cached_tokens: int) -> None:
        """Everything has been sent, or is in the `rest` before; a FinishReason, and see `TokenBatch`."""

    def fail(self, error: ApiError) -> None:
        """No more tokens will come, and this is why."""


Sink: TypeAlias = TokenSink | DirectSink


def finish_error(reason: int) -> ApiError | None:
    """The error behind a finish that is none of the client's doing; None for an ordinary end.

    For a deadline that passed before the first token: after it, the deadline is an ordinary end.
    """
    match reason:
        case FinishReason.ABORT:
            return ApiError(503, "The engine stopped before this request was finished.", code="aborted")
        case FinishReason.ERROR:
            return ApiError(
                500, "The engine failed on this request; other requests are not affected.", code="engine_error"
            )
        case FinishReason.DEADLINE:
            return deadline_passed()
        case FinishReason.SLOW_READER:
            return ApiError(
                408,
                "The client read too slowly: its tokens had no room for longer than --slow-reader-timeout.",
                code="slow_reader",
            )
        case _:
            return None
