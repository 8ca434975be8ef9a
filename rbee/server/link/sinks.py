"""Callbacks of the drain loop: a TokenSink receives batches of tokens, a DirectSink the events of its socket only.

Owns the two interfaces between `rbee.server.link.engine_client` and the replies, and which finish is an error. Does not
know either side. No callback may block.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias

from rbee.messages import FinishReason
from rbee.server.errors import ApiError, deadline_passed


class TokenBatch(NamedTuple):
    """What one drain has for one sequence; the lists are parallel.

    Attributes:
        token_ids: in order; one with the bit `rbee.messages.NOTE` is no output, see there.
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
    """Receives one sequence's tokens."""

    def deliver(self, batch: TokenBatch) -> None:
        """The next tokens, the end, or both."""

    def fail(self, error: ApiError) -> None:
        """No more tokens will come, because of `error`."""


class DirectSink(Protocol):
    """Receives the events of a sequence whose tokens the native drain writes to its socket."""

    def on_blocked(self, rest: bytes) -> None:
        """The socket did not take `rest`; the ring is paused until `resume`, if it has not ended."""

    def on_broken(self) -> None:
        """The socket cannot be written any more."""

    def on_finish(self, reason: int, cached_tokens: int) -> None:
        """All tokens were sent or are in an earlier `rest`; the arguments are those of `TokenBatch`."""

    def fail(self, error: ApiError) -> None:
        """No more tokens will come, because of `error`."""


Sink: TypeAlias = TokenSink | DirectSink


def finish_error(reason: int) -> ApiError | None:
    """The error that a FinishReason stands for; None for an ordinary end.

    DEADLINE is an error only before the first token; the caller knows whether there was one.
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
