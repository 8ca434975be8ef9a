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
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, cast

from rbee.errors import QueueFullError, TransportError
from rbee.messages import Submit, ToEngine, Wake, pack_token_ids
from rbee.server.errors import ApiError
from rbee.server.link.sinks import TokenBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rbee.sampling_params import SamplingParams
    from rbee.server.link.sinks import DirectSink, Sink, TokenSink
    from rbee.transport import Consumer, Drained, Outlet

_log = logging.getLogger(__name__)

_RATE_WINDOW = 64  # finished requests that the service rate is measured over
_LONGEST_RETRY_AFTER = 60  # seconds
_POLL_PATIENCE_NS = 20_000  # of one look at the doorbell; accepts, disconnects and new requests wait as long

_P = ParamSpec("_P")


class Choice(NamedTuple):
    """One sequence of a request.

    Attributes:
        sampling: what the client asked for.
        sink: hears of its tokens and its end; a DirectSink if there is an outlet, otherwise a TokenSink.
        outlet: writes its tokens.
        report_cached: see `rbee.messages.Submit`.
    """

    sampling: SamplingParams
    sink: Sink
    outlet: Outlet | None = None
    report_cached: bool = False


class TokenStream:
    """A submitted sequence, in the hands of whoever submitted it.

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
    """All sequences that one engine is working on: each choice of a request is one, with a ring of its own.

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
        max_running: int = 0,
        max_queued: int = 0,
        busy_poll: bool = False,
    ) -> None:
        """Start with no requests.

        Args:
            consumer: of the arena that the engine writes to.
            num_rings: of that arena.
            send: writes a record to the control channel.
            give_up: ends an engine whose arena is corrupt; its death then ends the requests.
            max_running: sequences that the engine runs at once, for `max_queued`.
            max_queued: sequences that may wait for it; 0: as many as there are rings.
            busy_poll: do not sleep while a request is open.
        """
        self._consumer = consumer
        self._send = send
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._max_running = max_running
        self._max_queued = max_queued
        self._busy_poll = busy_poll
        self._polling = False
        self._sinks: list[Sink | None] = [None] * num_rings
        self._generations = [0] * num_rings  # of each ring's open sequence; 0: it has none
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
        *,
        priority: int = 0,
        deadline_ns: int = 0,
        cache_salt: str = "",
    ) -> TokenStream:
        """Hand one sequence to the engine, without waiting for anything.

        See `Choice` and `submit_all`.
        """
        [stream] = self.submit_all(
            request_id,
            prompt,
            [Choice(sampling, sink, outlet)],
            priority=priority,
            deadline_ns=deadline_ns,
            cache_salt=cache_salt,
        )
        return stream

    def submit_all(
        self,
        request_id: str,
        prompt: list[int],
        choices: Sequence[Choice],
        *,
        priority: int = 0,
        deadline_ns: int = 0,
        cache_salt: str = "",
    ) -> list[TokenStream]:
        """Hand sequences with the same prompt to the engine, all of them or none, without waiting for anything.

        Args:
            request_id: for the engine's log.
            prompt: token ids.
            choices: what differs. With several of them the queue may pass its limit, by all but one.
            priority: smaller runs earlier.
            deadline_ns: when they end at the latest, CLOCK_MONOTONIC; 0 is never.
            cache_salt: only requests with the same salt share cached prefixes.

        Raises:
            QueueFullError: there are not enough free rings, or too many sequences wait already.
        """
        self._check_room(len(choices))
        packed, received_ns = pack_token_ids(prompt), time.monotonic_ns()
        streams = []
        for choice in choices:
            ring, generation = self._open(choice)
            self._send(
                Submit(
                    request_id=request_id,
                    ring=ring,
                    generation=generation,
                    prompt=packed,
                    sampling=choice.sampling,
                    received_ns=received_ns,
                    priority=priority,
                    deadline_ns=deadline_ns,
                    cache_salt=cache_salt,
                    report_cached=choice.report_cached,
                )
            )
            streams.append(TokenStream(self, ring, generation))
        if self._busy_poll and not self._polling:
            self._polling = True
            self._loop.call_soon(self._poll)
        return streams

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

    def _check_room(self, num_choices: int) -> None:
        """Raise QueueFullError unless so many sequences may be submitted now.

        Every ring counts until its finish has been drained. The engine's word on its queue is one step old at most; a
        burst within that step is bounded by the rings in use, of which `max_running` are taken to run. What stands
        between a slow reader and its last tokens counts as well then, though it is no work for the engine.
        """
        in_use = self.rings_in_use
        if in_use + num_choices > len(self._sinks):
            raise QueueFullError(
                f"The server already holds {in_use} requests (each choice counts), of {len(self._sinks)} that it was "
                "started for (--max-requests). Try again later."
            )
        if self._max_queued and (
            in_use >= self._max_running + self._max_queued
            or self._consumer.counters()["sequences_waiting"] >= self._max_queued
        ):
            raise QueueFullError(
                f"{self._max_queued} requests or more wait for the engine already (--max-queued-requests). "
                "Try again later."
            )

    def _open(self, choice: Choice) -> tuple[int, int]:
        """A ring for this sequence, which there is, and its generation."""
        assigned = self._consumer.assign()
        assert assigned is not None, "there is room"
        ring, generation = assigned
        self._sinks[ring] = choice.sink
        self._generations[ring] = generation
        if choice.outlet is not None:
            self._consumer.attach(ring, choice.outlet)
        self._num_sinks += 1
        self._idle.clear()
        return ring, generation

    def _deliver(self, drained: Drained) -> None:
        start = 0
        for ring, end, code in zip(drained.rings, drained.ends, drained.finishes, strict=True):
            sink = self._sinks[ring]
            if code:
                self._finished_at.append(time.monotonic())
                if sink is not None:
                    self._forget(ring)
            if sink is not None:
                batch = TokenBatch(
                    drained.tokens[start:end],
                    drained.logprobs[start:end],
                    drained.commit_ns[start:end],
                    *_split(code),
                )
                self._tell(ring, sink, cast("TokenSink", sink).deliver, batch)  # a ring with an outlet is in none
            start = end
        if start:
            self._consumer.note_delivered()
        # Only rings with an outlet are in these. A sink may have gone because of what it was told a moment ago.
        direct = cast("Sequence[DirectSink | None]", self._sinks)
        for ring, rest in drained.blocked:
            if (sink := direct[ring]) is not None:
                self._tell(ring, sink, sink.on_blocked, rest)
        for ring in drained.broken:
            if (sink := direct[ring]) is not None:
                self._tell(ring, sink, sink.on_broken)
        for ring, code in drained.ended:
            self._finished_at.append(time.monotonic())
            if (sink := direct[ring]) is not None:
                self._forget(ring)
                self._tell(ring, sink, sink.on_finish, *_split(code))

    def _tell(self, ring: int, sink: Sink, method: Callable[_P, None], *values: _P.args, **named: _P.kwargs) -> None:
        """Call a method of a sink. A defect of ours in one request must not reach the others."""
        try:
            method(*values, **named)
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


def _split(code: int) -> tuple[int, int]:
    """A ring's finish as the engine wrote it: the reason, and how much of the prompt was cached."""
    return code & 0xFF, code >> 8
