"""Callbacks of the drain loop: a TokenSink receives batches of tokens, a DirectSink the events of its socket only.

Owns these interfaces between `rbee.server.link.engine_client` and the replies. Does not know either side. No callback
may block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from rbee.server.errors import Refusal


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
    """Receives one sequence's tokens."""

    def deliver(self, batch: TokenBatch) -> None:
        """The next tokens, the end, or both."""

    def fail(self, error: Refusal) -> None:
        """No more tokens will come, because of `error`."""


class DirectSink(Protocol):
    """Receives the events of a sequence whose tokens the native drain writes to its socket."""

    def on_blocked(self, rest: bytes) -> None:
        """The socket did not take `rest`; the ring is paused until `resume`, if it has not ended."""

    def on_broken(self) -> None:
        """The socket cannot be written any more."""

    def on_finish(self, reason: int, cached_tokens: int) -> None:
        """All tokens were sent or are in an earlier `rest`; the arguments are those of `TokenBatch`."""

    def fail(self, error: Refusal) -> None:
        """No more tokens will come, because of `error`."""


Sink: TypeAlias = TokenSink | DirectSink
