"""Callbacks of the drain loop: a TokenSink receives batches of tokens, a DirectSink the events of its socket only.

An Account receives how each sequence of a request went.

Owns these interfaces; no callback may block. Does not know who calls or who implements them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from rbee.server.errors import Refusal
    from rbee.transport import TokenGaps


class TokenBatch(NamedTuple):
    """What one drain has for one sequence; the lists are parallel."""

    token_ids: list[int]  # one with the bit `rbee.messages.SIDE_RECORD` is no output, see there
    logprobs: list[float]  # natural logarithms, NaN for a sequence that asked for none
    commit_ns: list[int]  # when the engine published each, CLOCK_MONOTONIC
    reason: int = 0  # a FinishReason, or 0 if more may come
    cached_tokens: int = 0  # of the prompt, found in the prefix cache; known when there is a reason

    def without_first(self) -> TokenBatch:
        return self._replace(token_ids=self.token_ids[1:], logprobs=self.logprobs[1:], commit_ns=self.commit_ns[1:])


class TokenSink(Protocol):
    """Receives one sequence's tokens: the next ones, the end, or both. After `fail` nothing more comes."""

    def deliver(self, batch: TokenBatch) -> int:
        """Returns the FinishReason that the client sees if the batch ends the sequence, else 0."""

    def fail(self, error: Refusal) -> None: ...


class DirectSink(Protocol):
    """Receives the events of a sequence whose tokens the native drain writes to its socket."""

    def on_blocked(self, rest: bytes) -> None:
        """The socket did not take `rest`; the ring is paused until `resume`, if it has not ended."""

    def on_broken(self) -> None: ...

    def on_finish(self, reason: int, cached_tokens: int) -> None:
        """All tokens were sent or are in an earlier `rest`; the arguments are those of `TokenBatch`."""

    def fail(self, error: Refusal) -> None: ...


Sink: TypeAlias = TokenSink | DirectSink


class Account(Protocol):
    """Keeps how the sequences of one request went; `index` is the sequence's place in its request."""

    @property
    def gaps(self) -> TokenGaps | None:
        """Gets what is between the commits of tokens; None: not asked for."""

    def take(self, index: int, times: tuple[int, int, int, int], cached_tokens: int | None) -> None:
        """The sequence is over, before its sink hears of it; for `times` see `Consumer.times`.

        `cached_tokens` is None if the server ended the sequence.
        """

    def end(self, index: int, reason: int) -> None:
        """The FinishReason that the client sees; called once, after `take`."""
