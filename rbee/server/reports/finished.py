"""What is known of a request when it is over.

Owns these records. Does not know who fills or who reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from rbee.sampling_params import SamplingParams


class Figures(NamedTuple):
    """A generation in numbers. Times are CLOCK_MONOTONIC in ns, of the first choice that came so far; 0: it did not."""

    answer_id: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None  # of the prompt; None: the engine has not said it
    received_ns: int  # the server had the whole request
    started_ns: int  # the engine began to run it
    first_ns: int  # it committed the first token
    last_ns: int  # it committed the last token
    gap_ns: float | None  # mean time between the commits of two tokens of a choice; None: there were no two
    finish: str  # how its choices ended, as FinishReason in small letters, different ones with commas
    refusal: str  # the code of the error that ended the stream, or ""
    sampling: SamplingParams | None  # None: nothing is sampled

    @property
    def queue_ns(self) -> int | None:
        return self.started_ns - self.received_ns if self.started_ns else None

    @property
    def prefill_ns(self) -> int | None:
        return self.first_ns - self.started_ns if self.started_ns and self.first_ns else None

    @property
    def ttft_ns(self) -> int | None:
        """From the request to the commit of its first token: queue and prefill."""
        return self.first_ns - self.received_ns if self.first_ns else None

    @property
    def decode_ns(self) -> int | None:
        return self.last_ns - self.first_ns if self.first_ns else None


class Generating(Protocol):
    """A generation that a request has begun."""

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call it once all its sequences have ended: now, or later from the event loop."""

    def figures(self) -> Figures: ...


class FinishedRequest(NamedTuple):
    """A request for which an answer was begun or refused, or whose client left before."""

    request_id: str
    caller: int | None  # the index of its API key; None without one
    method: str  # "": what came could not be read as a request; its path is "" too
    path: str  # as the client sent it, percent-decoded: anything may be in it
    route: str  # the path with the names of its variable parts; "" if there is no such route
    status: int  # of the head of its answer; 499: the client left before
    refusal: str  # the code of the refusal that was the answer, or ""
    stream_id: str  # of the stream whose rest it asked for, or ""
    began_ns: int  # CLOCK_MONOTONIC: its head had been read
    ended_ns: int
    figures: Figures | None  # of the generation that it began


class RequestTrace(Protocol):
    """The trace of one request that is running."""

    @property
    def traceparent(self) -> str:
        """Of the answer, if the request had a trace; else empty."""

    def end(self, request: FinishedRequest) -> None:
        """The request is over."""
