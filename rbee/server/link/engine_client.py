"""The server's end of the token path: the one drain loop, and what requests ask of the engine.

Owns the reader of the doorbell, and the order of what is asked and delivered. One callback delivers the tokens of all
requests, `on_wake`: no queue and no task lies between a ring and its sink. The native drain itself sends the tokens of
a DirectTarget to its socket. Does not know what a sink does with tokens, or how the engine process is run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import msgspec

from rbee.errors import TransportError
from rbee.messages import FinishReason, Submit, ToEngine, Wake, pack_token_ids
from rbee.server.errors import Refusal, RefusalKind
from rbee.server.link.admission import ANYONE, Admission, AdmissionControl
from rbee.server.link.orphans import Orphans
from rbee.server.link.ring_table import RingTable, split
from rbee.server.link.sequences import SequenceHandle, Submitted
from rbee.server.link.sinks import TokenBatch

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence

    from rbee.server.link.admission import Requester
    from rbee.server.link.sequences import Choice, DirectTarget
    from rbee.server.link.sinks import Account, Sink, TokenSink
    from rbee.transport import Consumer, Drained

_log = logging.getLogger(__name__)

_POLL_PATIENCE_NS = 20_000  # of one poll of the doorbell; accepts, disconnects and new requests wait as long

_P = ParamSpec("_P")
_Result = TypeVar("_Result")


class EngineClient:
    """All open sequences of one engine; each choice of a request is a sequence with a ring of its own.

    A ring returns to the free list when its finish has been drained. The tokens of a cancelled sequence are discarded
    until then.

    Args:
        consumer: of the engine's arena, which has `num_rings`.
        send: writes a record to the control channel.
        give_up: ends an engine whose arena is corrupt; its death then ends the requests.
        admission: the limits; None: only the number of rings.
        busy_poll: poll the doorbell while a request is open; saves the time of a wakeup, and takes a processor.
        keep_unbegun: remember what was submitted until it ends, for `engine_died`.
        on_end: called once for each sequence, with its FinishReason as its client sees it and the seconds since its
            request was received.
        clock: time.monotonic, or a test's.
    """

    def __init__(
        self,
        consumer: Consumer,
        num_rings: int,
        send: Callable[[ToEngine], None],
        give_up: Callable[[], None],
        *,
        admission: Admission | None = None,
        busy_poll: bool = False,
        keep_unbegun: bool = False,
        on_end: Callable[[int, float], None] = lambda reason, seconds: None,  # noqa: ARG005 - the callback's signature
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._consumer = consumer
        self._send = send
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._admission = AdmissionControl(admission or Admission(), consumer, num_rings, clock)
        self._busy_poll = busy_poll
        self._keep_unbegun = keep_unbegun
        self._orphans = Orphans(send, self._fail)
        self._rings = RingTable(consumer, num_rings, self._admission, self._orphans, on_end=on_end, clock=clock)
        self._doorbell: int | None = None
        self._polling = self._stopped = False
        self._is_over = False  # the engine is dead, or the client has been stopped
        self._delivering: Drained | None = None  # by `_deliver`, whose callbacks come back here
        self._delivered: list[Callable[[], None]] = []  # what that calls at its end

    @property
    def queued_tokens(self) -> int:
        """Of the prompts for which the engine has published nothing yet."""
        tokens: int = self._consumer.queued_tokens
        return tokens

    def held_by_key(self) -> Counter[int]:
        """Open sequences by the index of their API key."""
        return self._admission.held()

    @property
    def engine_signs(self) -> tuple[int, int]:
        """The engine's heartbeat and progress words."""
        signs: tuple[int, int] = self._consumer.engine_signs
        return signs

    def counters(self) -> dict[str, int]:
        return self._consumer.counters()

    def start(self, doorbell: int) -> None:
        """Drain whenever this eventfd is readable, until `stop`."""
        self._doorbell = doorbell
        self._loop.add_reader(doorbell, self.on_wake)

    def stop(self) -> None:
        """Stop reading the doorbell and the arena, before they are closed."""
        self._stopped = self._is_over = True
        if self._doorbell is not None:
            self._loop.remove_reader(self._doorbell)
            self._doorbell = None

    @property
    def rings_in_use(self) -> int:
        """Rings whose finish has not been drained, those of cancelled sequences included."""
        in_use: int = self._consumer.in_use
        return in_use

    async def make_room(self, num_choices: int, num_tokens: int, requester: Requester = ANYONE) -> None:
        """Give up orphans until a request can be submitted, or none is left that would help.

        Its choices have `num_tokens` prompt tokens together.
        Waits for the engine's next step, if it lives. What the caller submits next, without waiting in between, has the
        room.
        """
        await self._orphans.make_room(
            num_choices,
            # Nothing helps when the engine is dead; its arena may be closed by then.
            lambda: None if self._is_over else self._admission.who_helps(num_choices, num_tokens, requester),
        )

    def most_at_once(self, requester: Requester) -> int:
        """Sequences that one request of many may have at a time; there may be no room for them."""
        return self._admission.most_at_once(requester)

    def check_room(self, num_sequences: int, num_tokens: int, requester: Requester = ANYONE) -> None:
        """Let so many sequences with so many prompt tokens together be submitted, without waiting in between.

        Raises:
            Refusal: there is no room for them.
        """
        self._admission.check(num_sequences, num_tokens, requester)

    def end_orphans(self) -> None:
        """End all orphans, and those to come at once."""
        self._orphans.end_all()

    def submit_all(
        self,
        request_id: str,
        prompt: list[int],
        choices: Sequence[Choice],
        *,
        received_ns: int,
        priority: int = 0,
        deadline_ns: int = 0,
        cache_salt: str = "",
        requester: Requester = ANYONE,
        account: Account | None = None,
    ) -> list[SequenceHandle]:
        """Submit the sequences of one request, all of them or none, on one account. Does not wait.

        `prompt` is that of choices that have none of their own. `requester` asks for them. For the other options see
        `rbee.messages.Submit`.

        Raises:
            Refusal: there is no room for it.
        """
        num_tokens = sum(len(prompt if choice.prompt is None else choice.prompt) for choice in choices)
        self.check_room(len(choices), num_tokens, requester)
        packed = pack_token_ids(prompt)
        handles = []
        for index, choice in enumerate(choices):
            record = Submit(
                request_id=request_id,
                ring=0,
                generation=0,
                prompt=packed if choice.prompt is None else pack_token_ids(choice.prompt),
                sampling=choice.sampling,
                received_ns=received_ns,
                priority=priority,
                deadline_ns=deadline_ns,
                cache_salt=cache_salt,
                report_cached=choice.report_cached,
            )
            handle = SequenceHandle(self, 0, 0)
            entry = None if account is None else (account, index)
            self.submit(Submitted(record, choice.sink, choice.timed, requester.caller, entry, handle))
            handles.append(handle)
        return handles

    def submit(self, sequence: Submitted) -> None:
        """Submit a sequence, perhaps again, for which there must be a ring."""
        record = sequence.record
        ring, generation = self._rings.open(sequence)
        sequence.handle.move(self, ring, generation)
        record = sequence.record = msgspec.structs.replace(record, ring=ring, generation=generation)
        if self._keep_unbegun:
            self._rings.submitted[ring] = sequence
        if sequence.handle.paused:
            self._consumer.pause(ring)
        self._send(record)
        if sequence.handle.orphaned:
            self._orphans.add(ring)
        if self._busy_poll and not self._polling:
            self._polling = True
            self._loop.call_soon(self._poll)

    def when_delivered(self, callback: Callable[[], None]) -> None:
        """For a sink whose sequence ends: call it when the drain has been delivered, before anybody else can submit.

        The ring is free then, and the sink's to use.
        """
        self._delivered.append(callback)

    def cancel(self, ring: int, generation: int, reason: int = FinishReason.ABORT) -> None:
        if not self._rings.holds(ring, generation):
            return
        self._rings.end(ring, reason)
        if self._has_ended(ring):
            return
        if self._consumer.cancel(ring):
            self._send(Wake())
        if self._consumer.resume(ring):  # a paused ring would never show its finish
            self._loop.call_soon(self.on_wake)

    def pause(self, ring: int, generation: int) -> None:
        if self._rings.holds(ring, generation) and not self._has_ended(ring):
            self._consumer.pause(ring)

    def resume(self, ring: int, generation: int) -> None:
        if self._rings.holds(ring, generation) and not self._has_ended(ring) and self._consumer.resume(ring):
            self._loop.call_soon(self.on_wake)

    def orphan(self, ring: int, generation: int) -> None:
        if self._rings.holds(ring, generation):
            self._consumer.pause(ring)
            self._orphans.add(ring)

    def adopt(self, ring: int, generation: int) -> None:
        if self._rings.holds(ring, generation):
            self._orphans.adopt(ring)

    def redirect(self, ring: int, generation: int, sink: TokenSink | DirectTarget) -> None:
        if self._rings.holds(ring, generation):
            self._rings.set_sink(ring, sink)
            if (sequence := self._rings.submitted.get(ring)) is not None:
                sequence.target = sink

    def on_wake(self) -> None:
        if self._stopped:  # a call that was due when the engine was given up
            return
        if self._polling:
            self._consumer.silence()
        elif self._turn():
            self._loop.call_soon(self.on_wake)  # accepts, disconnects and cancels come in between

    def _poll(self) -> None:
        """In place of `on_wake` while a request is open: poll in every turn of the event loop."""
        if self._rings.num_open:
            if self._consumer.poll(_POLL_PATIENCE_NS):
                self._turn()
            else:
                os.sched_yield()  # the engine may be waiting for this core
            self._loop.call_soon(self._poll)
        else:
            self._polling = False
            self.on_wake()  # arms the doorbell, and discards what cancelled sequences still hold

    def fail_all(self, error: Refusal) -> None:
        """End every open sequence with `error`, and cancel it in the engine."""
        for ring, _, _ in self._rings.open_sequences():
            self._fail(ring, error)

    def _fail(self, ring: int, error: Refusal) -> None:
        sink = self._rings.sink(ring)
        assert sink is not None, "the sequence is open"
        self.cancel(ring, self._rings.generations[ring])
        sink.fail(error)

    def engine_died(self, error: Refusal, keep: Callable[[Submitted], bool] = lambda _: False) -> None:
        """Deliver all that the dead engine committed, then end what is still open with `error`.

        Sequences that the engine committed nothing for are offered to `keep`, in the order of their submission; what it
        takes is the caller's. Only a client with `keep_unbegun` knows them.
        """
        self._is_over = True
        self._consumer.expect_all()
        while drained := self._drain():
            self._deliver(drained)
            if not drained.more:
                break
        for ring, sequence in list(self._rings.submitted.items()):
            if not self._consumer.has_begun(ring) and keep(sequence):
                self._rings.forget(ring)
        for ring, _, sink in self._rings.open_sequences():
            self._rings.end(ring, FinishReason.ERROR)
            sink.fail(error)
        self._orphans.on_engine_death()

    async def wait_idle(self) -> None:
        await self._rings.wait_idle()

    def _turn(self) -> bool:
        """Drain once and deliver; True if more is left, without a wakeup to come."""
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
        # A callback may end other sequences: each sink is looked up when its turn comes.
        self._delivering = drained
        rings = self._rings
        start = 0
        for ring, end, code in zip(drained.rings, drained.ends, drained.finishes, strict=True):
            sink, received_ns, entry = rings.token_sinks[ring], rings.received_ns[ring], None
            if code:
                self._admission.on_released(ring)
                entry = rings.forget(ring, code)
                self._orphans.on_free(ring)
            if sink is not None:
                batch = TokenBatch(
                    drained.tokens[start:end],
                    drained.logprobs[start:end],
                    drained.commit_ns[start:end],
                    *split(code),
                )
                shown = self._call(ring, sink, sink.deliver, batch)
                if code:
                    rings.count_end(FinishReason.ERROR if shown is None else shown, received_ns, entry)
            start = end
        if start:
            self._consumer.note_delivered()
        for ring, rest in drained.blocked:
            if (direct := rings.direct_sinks[ring]) is not None:
                self._call(ring, direct, direct.on_blocked, rest)
        for ring in drained.broken:
            if (direct := rings.direct_sinks[ring]) is not None:
                self._call(ring, direct, direct.on_broken)
        for ring, code in drained.ended:
            self._admission.on_released(ring)
            if (direct := rings.direct_sinks[ring]) is not None:
                rings.end(ring, split(code)[0], code)
                self._call(ring, direct, direct.on_finish, *split(code))
        self._delivering = None
        if self._delivered:
            callbacks, self._delivered = self._delivered, []
            for callback in callbacks:
                callback()

    def _has_ended(self, ring: int) -> bool:
        """Whether the ring has been given back, and its sequence is only to be told so."""
        drained = self._delivering
        return drained is not None and (
            any(code and other == ring for other, code in zip(drained.rings, drained.finishes, strict=True))
            or any(other == ring for other, _ in drained.ended)
        )

    def _call(
        self, ring: int, sink: Sink, method: Callable[_P, _Result], *values: _P.args, **named: _P.kwargs
    ) -> _Result | None:
        """Call a method of a sink. An exception ends its request and leaves the others alone; None then."""
        try:
            return method(*values, **named)
        except Exception:  # noqa: BLE001 - logged; the other requests go on
            _log.exception("delivering tokens failed; the request is ended")
            if sink is self._rings.sink(ring):
                self.cancel(ring, self._rings.generations[ring], FinishReason.ERROR)
            message = "The server failed while writing this answer."
            sink.fail(Refusal(RefusalKind.FAILED, message, code="internal_error"))
            return None
