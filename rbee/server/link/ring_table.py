"""Which ring belongs to which open sequence, from its submission to its end: its sink, its account, its times.

Owns that a sequence ends once, and that its account gets its times before its sink hears of the end. Does not know who
drains the rings, or why a sequence ends.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rbee.server.link.sequences import DirectTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rbee.server.link.admission import AdmissionControl
    from rbee.server.link.orphans import Orphans
    from rbee.server.link.sequences import Entry, Submitted
    from rbee.server.link.sinks import DirectSink, Sink, TokenSink
    from rbee.transport import Consumer


class RingTable:
    """The `num_rings` rings of `consumer`; for `on_end` and `clock` see `EngineClient`.

    Attributes:
        generations: by ring. An open sequence has one other than 0, and a sink in one of the next two.
        token_sinks: by ring.
        direct_sinks: by ring.
        received_ns: by ring: when the request was received, CLOCK_MONOTONIC; it stays when the sequence has ended.
        submitted: by ring, if the caller puts them there.
        num_open: sequences that have not ended.
    """

    def __init__(
        self,
        consumer: Consumer,
        num_rings: int,
        admission: AdmissionControl,
        orphans: Orphans,
        *,
        on_end: Callable[[int, float], None],
        clock: Callable[[], float],
    ) -> None:
        self._consumer = consumer
        self._admission = admission
        self._orphans = orphans
        self._on_end = on_end
        self._clock = clock
        self.generations = [0] * num_rings
        self.token_sinks: list[TokenSink | None] = [None] * num_rings
        self.direct_sinks: list[DirectSink | None] = [None] * num_rings
        self.received_ns = [0] * num_rings
        self.submitted: dict[int, Submitted] = {}
        self.num_open = 0
        self._accounts: list[Entry | None] = [None] * num_rings
        self._idle = asyncio.Event()
        self._idle.set()

    async def wait_idle(self) -> None:
        while self.num_open:  # an end may have submitted another
            await self._idle.wait()

    def open(self, sequence: Submitted) -> tuple[int, int]:
        """The ring and generation of a new sequence, for which there must be a ring."""
        record, entry, num_tokens = sequence.record, sequence.entry, len(sequence.record.prompt) // 4
        received_ns = record.received_ns if sequence.timed else 0
        assigned = self._consumer.assign(received_ns, num_tokens, entry and entry[0].gaps)
        assert assigned is not None, "there is room"
        ring, generation = assigned
        self._admission.on_submitted(ring, num_tokens, sequence.caller)
        self.generations[ring] = generation
        self.received_ns[ring] = record.received_ns
        self._accounts[ring] = entry
        self.set_sink(ring, sequence.target)
        self.num_open += 1
        self._idle.clear()
        return ring, generation

    def set_sink(self, ring: int, sink: TokenSink | DirectTarget) -> None:
        if isinstance(sink, DirectTarget):
            self.token_sinks[ring], self.direct_sinks[ring] = None, sink.sink
            self._consumer.attach(ring, sink.outlet)
        else:
            self.token_sinks[ring], self.direct_sinks[ring] = sink, None

    def holds(self, ring: int, generation: int) -> bool:
        """Whether the sequence with this generation is open."""
        return self.generations[ring] == generation

    def sink(self, ring: int) -> Sink | None:
        return self.token_sinks[ring] or self.direct_sinks[ring]

    def open_sequences(self) -> Iterator[tuple[int, int, Sink]]:
        """(ring, generation, sink) of each sequence that is open when its turn comes."""
        for ring, generation in enumerate(self.generations):
            sink = self.sink(ring)
            if sink is not None:
                yield ring, generation, sink

    def end(self, ring: int, reason: int, code: int = 0) -> None:
        """Forget the sequence of a ring, and count its end. Does nothing if there is none any more."""
        if self.generations[ring]:
            self.count_end(reason, self.received_ns[ring], self.forget(ring, code))

    def count_end(self, reason: int, received_ns: int, entry: Entry | None) -> None:
        self._on_end(reason, self._clock() - received_ns / 1e9)
        if entry is not None:
            account, index = entry
            account.end(index, reason)

    def forget(self, ring: int, code: int = 0) -> Entry | None:
        """Have the account take the times; returns it. `code` is the ring's finish, if that has been drained."""
        if not self.generations[ring]:
            return None
        entry, self._accounts[ring] = self._accounts[ring], None
        if entry is not None:
            account, index = entry
            account.take(index, self._consumer.times(ring), split(code)[1] if code else None)
        self.generations[ring] = 0
        self.submitted.pop(ring, None)
        self._admission.on_ended(ring)
        self.token_sinks[ring] = self.direct_sinks[ring] = None
        self._consumer.detach(ring)
        self._orphans.forget(ring)
        self.num_open -= 1
        if not self.num_open:
            self._idle.set()
        return entry


def split(code: int) -> tuple[int, int]:
    """Reason and number of cached prompt tokens of a ring's finish."""
    return code & 0xFF, code >> 8
