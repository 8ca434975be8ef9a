"""The server's end of the token path: the one drain loop, and what requests do to the engine.

Owns which request has which ring. Tokens arrive by one callback for all requests, `on_wake`; no queue and no task
lies between the ring and the sink. A direct sink's tokens do not even pass through here: the drain sends them to its
outlet's socket, and only what is out of the ordinary comes back. Does not know what a sink does with tokens, or how the
engine process lives.

With `busy_poll` the loop looks at the doorbell instead of being woken by it, as long as a request is open: a processor
for the time that a wakeup takes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from rbee.errors import QueueFullError, TransportError
from rbee.messages import FinishReason, Submit, ToEngine, Wake, pack_token_ids
from rbee.server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rbee.sampling_params import SamplingParams
    from rbee.transport import Consumer, Drained, Outlet

_log = logging.getLogger(__name__)

_RATE_WINDOW = 64  # finished requests that the service rate is measured over
_LONGEST_RETRY_AFTER = 60  # seconds
_POLL_PATIENCE_NS = 20_000  # of one look at the doorbell; accepts, disconnects and new requests wait as long


class TokenSink(Protocol):
    """Where one request's tokens go. Called from the drain loop; it must not block."""

    def deliver(self, token_ids: list[int], commit_ns: list[int], reason: int) -> None:
        """Tokens in order, each with its commit time. `reason` is a FinishReason, or 0 if more may come."""

    def fail(self, error: ApiError) -> None:
        """No more tokens will come, and this is why."""


class DirectSink(Protocol):
    """What hears of a request whose tokens the drain sends itself. As a TokenSink, it must not block."""

    def on_blocked(self, rest: bytes) -> None:
        """The socket did not take `rest`; the ring is paused until `resume`, if it has not ended."""

    def on_broken(self) -> None:
        """The socket is of no use any more."""

    def on_finish(self, reason: int) -> None:
        """Everything has been sent, or is in the `rest` before; a FinishReason."""

    def fail(self, error: ApiError) -> None:
        """No more tokens will come, and this is why."""


Sink: TypeAlias = TokenSink | DirectSink


class TokenStream:
    """A submitted request, in the hands of whoever submitted it.

    It does not know its sink, which knows it: together they would be garbage that only the collector can find.
    """

    __slots__ = ("_client", "_generation", "_ring")

    def __init__(self, client: EngineClient, ring: int, generation: int) -> None:
        self._client = client
        self._ring = ring
        self._generation = generation

    def cancel(self) -> None:
        """The tokens are not wanted any more: the sink hears nothing further. Harmless after the end."""
        self._client.cancel(self._ring, self._generation)

    def pause(self) -> None:
        """Leave the tokens in the ring until `resume`. Harmless after the end."""
        self._client.pause(self._ring, self._generation)

    def resume(self) -> None:
        """Deliver what the ring holds, soon."""
        self._client.resume(self._ring, self._generation)


class EngineClient:
    """All requests that one engine is working on.

    A ring goes back to the free list only when its finish has been drained, also when its client has gone long before:
    until then its tokens are discarded here.
    """

    def __init__(
        self,
        consumer: Consumer,
        num_rings: int,
        send: Callable[[ToEngine], None],
        give_up: Callable[[], None],
        *,
        busy_poll: bool = False,
    ) -> None:
        """Start with no requests.

        Args:
            consumer: of the arena that the engine writes to.
            num_rings: of that arena.
            send: writes a record to the control channel.
            give_up: ends an engine whose arena is corrupt; its death then ends the requests.
            busy_poll: do not sleep while a request is open.
        """
        self._consumer = consumer
        self._send = send
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._busy_poll = busy_poll
        self._polling = False
        self._sinks: list[Sink | None] = [None] * num_rings
        self._generations = [0] * num_rings  # of each ring's open request; 0: it has none
        self._num_sinks = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._finished_at: deque[float] = deque(maxlen=_RATE_WINDOW)

    @property
    def rings_in_use(self) -> int:
        """Rings that a request holds, abandoned ones included."""
        in_use: int = self._consumer.in_use
        return in_use

    def submit(
        self,
        request_id: str,
        prompt: list[int],
        sampling: SamplingParams,
        sink: Sink,
        outlet: Outlet | None = None,
    ) -> TokenStream:
        """Hand a request to the engine; `sink` hears of its tokens.

        Args:
            request_id: for log lines.
            prompt: token ids.
            sampling: what the engine is asked for.
            sink: a TokenSink, or a DirectSink if there is an outlet.
            outlet: writes the tokens itself.

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
        self._generations[ring] = generation
        if outlet is not None:
            self._consumer.attach(ring, outlet)
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
        if self._busy_poll and not self._polling:
            self._polling = True
            self._loop.call_soon(self._poll)
        return TokenStream(self, ring, generation)

    def cancel(self, ring: int, generation: int) -> None:
        """See `TokenStream.cancel`."""
        if self._generations[ring] != generation:
            return
        self._forget(ring)
        if self._consumer.cancel(ring):
            self._send(Wake())
        if self._consumer.resume(ring):  # a paused ring would never show its finish
            self._loop.call_soon(self.on_wake)

    def pause(self, ring: int, generation: int) -> None:
        """See `TokenStream.pause`."""
        if self._generations[ring] == generation:
            self._consumer.pause(ring)

    def resume(self, ring: int, generation: int) -> None:
        """See `TokenStream.resume`."""
        if self._generations[ring] == generation and self._consumer.resume(ring):
            self._loop.call_soon(self.on_wake)

    def on_wake(self) -> None:
        """Deliver what the rings hold. The event loop calls this when the doorbell's eventfd is readable."""
        if self._polling:
            self._consumer.silence()
        elif self._turn():
            self._loop.call_soon(self.on_wake)  # accepts, disconnects and cancels have their turn in between

    def _poll(self) -> None:
        """Instead of `on_wake`: look at the doorbell in every turn of the event loop while a request is open."""
        if self._num_sinks:
            if self._consumer.poll(_POLL_PATIENCE_NS):
                self._turn()
            self._loop.call_soon(self._poll)
        else:
            self._polling = False
            self.on_wake()  # which arms the doorbell, and discards what abandoned requests still hold

    def fail_all(self, error: ApiError) -> None:
        """End every open request with `error`, and cancel it in the engine."""
        for ring, sink in enumerate(self._sinks):
            if sink is not None:
                self.cancel(ring, self._generations[ring])
                sink.fail(error)

    def engine_died(self, error: ApiError) -> None:
        """Deliver all that the dead engine committed, then end what is still open with `error`."""
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

    def _turn(self) -> bool:
        """Drain once and deliver; True if there is more and nobody will say so."""
        drained = self._drain()
        if drained is None:
            return False
        self._deliver(drained)
        if drained.needs_wake:
            self._send(Wake())
        return drained.more

    def _drain(self) -> Drained | None:
        """What the rings hold; None if the engine has left them corrupt."""
        try:
            return self._consumer.drain(polling=self._polling)
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
                token_ids, commit_ns = drained.tokens[start:end], drained.commit_ns[start:end]
                self._tell(ring, sink, "deliver", token_ids, commit_ns, reason)
            start = end
        if start:
            self._consumer.note_delivered()
        # A sink may have gone because of what it was told a moment ago.
        for ring, rest in drained.blocked:
            self._tell(ring, self._sinks[ring], "on_blocked", rest)
        for ring in drained.broken:
            self._tell(ring, self._sinks[ring], "on_broken")
        for ring, reason in drained.ended:
            self._finished_at.append(time.monotonic())
            sink = self._sinks[ring]
            if sink is not None:
                self._forget(ring)
                self._tell(ring, sink, "on_finish", reason)

    def _tell(self, ring: int, sink: Sink | None, what: str, *values: Any) -> None:
        """Call a method of a sink, if it is still there. A defect of ours in one request must not reach the others."""
        if sink is None:
            return
        try:
            getattr(sink, what)(*values)
        except Exception:  # noqa: BLE001 - logged; the other requests go on
            _log.exception("delivering tokens failed; the request is ended")
            if self._sinks[ring] is sink:
                self.cancel(ring, self._generations[ring])
            sink.fail(ApiError(500, "The server failed while writing this answer.", code="internal_error"))

    def _forget(self, ring: int) -> None:
        self._sinks[ring] = None
        self._generations[ring] = 0
        self._num_sinks -= 1
        self._consumer.detach(ring)
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
