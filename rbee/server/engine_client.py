"""The server's end of the token path: the one drain loop, and what requests do to the engine.

Owns which request has which ring. Tokens arrive by one callback for all requests, `on_wake`; no queue and no task
lies between the ring and the sink. Does not know what a sink does with tokens, or how the engine process lives.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from rbee.errors import QueueFullError, TransportError
from rbee.messages import FinishReason, Submit, ToEngine, Wake, pack_token_ids
from rbee.server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rbee.sampling_params import SamplingParams
    from rbee.transport import Consumer, Drained

_log = logging.getLogger(__name__)

_RATE_WINDOW = 64  # finished requests that the service rate is measured over
_LONGEST_RETRY_AFTER = 60  # seconds


class TokenSink(Protocol):
    """Where one request's tokens go. Called from the drain loop; it must not block."""

    def deliver(self, token_ids: list[int], commit_ns: list[int], reason: int) -> None:
        """Tokens in order, each with its commit time. `reason` is a FinishReason, or 0 if more may come."""

    def fail(self, error: ApiError) -> None:
        """No more tokens will come, and this is why."""


class TokenStream:
    """A submitted request, in the hands of whoever submitted it."""

    __slots__ = ("_client", "_ring", "_sink")

    def __init__(self, client: EngineClient, ring: int, sink: TokenSink) -> None:
        self._client = client
        self._ring = ring
        self._sink = sink

    def cancel(self) -> None:
        """The tokens are not wanted any more: the sink hears nothing further. Harmless after the end."""
        self._client.cancel(self._ring, self._sink)

    def pause(self) -> None:
        """Leave the tokens in the ring until `resume`. Harmless after the end."""
        self._client.pause(self._ring, self._sink)

    def resume(self) -> None:
        """Deliver what the ring holds, soon."""
        self._client.resume(self._ring, self._sink)


class EngineClient:
    """All requests that one engine is working on.

    A ring goes back to the free list only when its finish has been drained, also when its client has gone long before:
    until then its tokens are discarded here.
    """

    def __init__(
        self, consumer: Consumer, num_rings: int, send: Callable[[ToEngine], None], give_up: Callable[[], None]
    ) -> None:
        """Start with no requests.

        Args:
            consumer: of the arena that the engine writes to.
            num_rings: of that arena.
            send: writes a record to the control channel.
            give_up: ends an engine whose arena is corrupt; its death then ends the requests.
        """
        self._consumer = consumer
        self._send = send
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._sinks: list[TokenSink | None] = [None] * num_rings
        self._num_sinks = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._finished_at: deque[float] = deque(maxlen=_RATE_WINDOW)

    @property
    def rings_in_use(self) -> int:
        """Rings that a request holds, abandoned ones included."""
        in_use: int = self._consumer.in_use
        return in_use

    def submit(self, request_id: str, prompt: list[int], sampling: SamplingParams, sink: TokenSink) -> TokenStream:
        """Hand a request to the engine; `sink` hears of its tokens.

        Raises:
            QueueFullError: every ring is taken.
        """
        assigned = self._consumer.assign()
        if assigned is None:
            raise QueueFullError(
                f"The server already holds {len(self._sinks)} requests, as many as it was started for "
                "(--max-requests). Try again later."
            )
        ring, generation = assigned
        self._sinks[ring] = sink
        self._num_sinks += 1
        self._idle.clear()
        self._send(
            Submit(
                request_id=request_id,
                ring=ring,
                generation=generation,
                prompt=pack_token_ids(prompt),
                sampling=sampling,
                received_ns=time.monotonic_ns(),
            )
        )
        return TokenStream(self, ring, sink)

    def cancel(self, ring: int, sink: TokenSink) -> None:
        """See `TokenStream.cancel`."""
        if self._sinks[ring] is not sink:
            return
        self._forget(ring)
        if self._consumer.cancel(ring):
            self._send(Wake())
        if self._consumer.resume(ring):  # a paused ring would never show its finish
            self._loop.call_soon(self.on_wake)

    def pause(self, ring: int, sink: TokenSink) -> None:
        """See `TokenStream.pause`."""
        if self._sinks[ring] is sink:
            self._consumer.pause(ring)

    def resume(self, ring: int, sink: TokenSink) -> None:
        """See `TokenStream.resume`."""
        if self._sinks[ring] is sink and self._consumer.resume(ring):
            self._loop.call_soon(self.on_wake)

    def on_wake(self) -> None:
        """Deliver what the rings hold. The event loop calls this when the doorbell's eventfd is readable."""
        drained = self._drain()
        if drained is None:
            return
        self._deliver(drained)
        if drained.needs_wake:
            self._send(Wake())
        if drained.more:
            self._loop.call_soon(self.on_wake)  # accepts, disconnects and cancels have their turn in between

    def fail_all(self, error: ApiError) -> None:
        """End every open request with `error`, and cancel it in the engine."""
        for ring, sink in enumerate(self._sinks):
            if sink is not None:
                self.cancel(ring, sink)
                sink.fail(error)

    def engine_died(self, error: ApiError) -> None:
        """Deliver all that the dead engine committed, then end what is still open with `error`."""
        for ring, sink in enumerate(self._sinks):
            if sink is not None:
                self._consumer.resume(ring)
        self._consumer.expect_all()
        while drained := self._drain():
            self._deliver(drained)
            if not drained.more:
                break
        for ring, sink in enumerate(self._sinks):
            if sink is not None:
                self._forget(ring)
                sink.fail(error)

    async def wait_idle(self) -> None:
        """Return when no request is open."""
        await self._idle.wait()

    def retry_after(self) -> int:
        """Seconds until a place should be free, from the rate at which the last requests finished; 1 to 60."""
        if len(self._finished_at) < 2:
            return 1
        period = (time.monotonic() - self._finished_at[0]) / len(self._finished_at)
        return min(max(math.ceil(period), 1), _LONGEST_RETRY_AFTER)

    def _drain(self) -> Drained | None:
        """What the rings hold; None if the engine has left them corrupt."""
        try:
            return self._consumer.drain()
        except TransportError:
            _log.exception("the engine's arena is corrupt; the engine is ended")
            self._give_up()
            return None

    def _deliver(self, drained: Drained) -> None:
        start = 0
        for ring, end, reason in zip(drained.rings, drained.ends, drained.finishes, strict=True):
            sink = self._sinks[ring]
            if reason:
                self._finished_at.append(time.monotonic())
                if sink is not None:
                    self._forget(ring)
            if sink is not None:
                try:
                    sink.deliver(drained.tokens[start:end], drained.commit_ns[start:end], reason)
                except Exception:  # noqa: BLE001 - logged there; the other requests go on
                    self._sink_broke(ring, sink)
            start = end

    def _sink_broke(self, ring: int, sink: TokenSink) -> None:
        """A defect of ours in one request must not reach the others."""
        _log.exception("delivering tokens failed; the request is ended")
        self.cancel(ring, sink)
        sink.fail(ApiError(500, "The server failed while writing this answer.", code="internal_error"))

    def _forget(self, ring: int) -> None:
        self._sinks[ring] = None
        self._num_sinks -= 1
        if not self._num_sinks:
            self._idle.set()


def finish_error(reason: int) -> ApiError | None:
    """The error behind a finish that is none of the client's doing; None for an ordinary end."""
    match reason:
        case FinishReason.ABORT:
            return ApiError(503, "The engine stopped before this request was finished.", code="aborted")
        case FinishReason.ERROR:
            return ApiError(
                500, "The engine failed on this request; other requests are not affected.", code="engine_error"
            )
        case FinishReason.DEADLINE:
            return ApiError(
                408, "The request took longer than it may, or its client read too slowly.", code="deadline_exceeded"
            )
        case _:
            return None
