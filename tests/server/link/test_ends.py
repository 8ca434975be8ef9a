"""Each sequence is counted once when it ends, with the reason that its client sees."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from rbee.messages import FinishReason
from rbee.server.link.ends import BOUNDS, SequenceEnds
from tests.fakes import RecordingDirectSink, RecordingSink
from tests.server.link.link_parts import DIED, direct_target, running_engine, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rbee.server.link.sinks import TokenBatch
    from tests.server.link.link_parts import Engine

pytestmark = pytest.mark.anyio

NOW = 10.0  # seconds on the client's clock; each request was received 9 ns after its zero


class Counted:
    """An engine whose client counts its ends here."""

    def __init__(self) -> None:
        self.ends: list[tuple[int, float]] = []
        self.engine: Engine

    @property
    def reasons(self) -> list[int]:
        """Without the times."""
        return [reason for reason, _ in self.ends]


@pytest.fixture
async def counted() -> AsyncIterator[Counted]:
    """Such an engine."""
    counted = Counted()
    with running_engine(on_end=lambda *end: counted.ends.append(end), clock=lambda: NOW) as counted.engine:
        yield counted


class StoppingSink(RecordingSink):
    """Shows its client another end than the engine's."""

    def deliver(self, batch: TokenBatch) -> int:
        """A stop string was in the tokens."""
        return FinishReason.STOP if super().deliver(batch) else 0


async def test_finish_of_the_engine_counts_when_it_is_drained(counted: Counted) -> None:
    """With its reason, and the time since the request was received."""
    _, ring, sink = counted.engine.submit()
    counted.engine.commit([(ring, 1)])
    await until(lambda: sink.token_ids)
    assert counted.ends == []
    counted.engine.commit([(ring, 2)], [(ring, FinishReason.LENGTH | 3 << 8)])
    await until(lambda: sink.ends)
    assert counted.ends == [(FinishReason.LENGTH, NOW - 9e-9)]


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.STOP])
async def test_cancel_counts_at_once_and_its_finish_does_not(counted: Counted, reason: FinishReason) -> None:
    """A sequence that was cancelled, even twice, and then ended by the engine is one end."""
    stream, ring, _ = counted.engine.submit()
    stream.cancel(reason)
    stream.cancel()
    assert counted.reasons == [reason]
    counted.engine.commit([], [(ring, FinishReason.ABORT)])
    await until(lambda: counted.engine.client.rings_in_use == 0)
    assert counted.reasons == [reason]


async def test_reason_is_the_one_that_the_client_sees(counted: Counted) -> None:
    """A stop string in the last batch counts as stop, although the engine ended for another reason."""
    _, ring, sink = counted.engine.submit(StoppingSink())
    counted.engine.commit([(ring, 1)], [(ring, FinishReason.LENGTH)])
    await until(lambda: sink.ends)
    assert counted.reasons == [FinishReason.STOP]


@pytest.mark.parametrize("finishes", [True, False])
async def test_sink_that_fails_is_an_error(counted: Counted, finishes: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Once, whether or not its batch was the last one."""
    _, ring, sink = counted.engine.submit(RecordingSink(broken=True))
    counted.engine.commit([(ring, 1)], [(ring, FinishReason.LENGTH)] if finishes else [])
    await until(lambda: sink.ends)
    assert counted.reasons == [FinishReason.ERROR]


async def test_native_streams_count_too(counted: Counted) -> None:
    """The end of a stream whose tokens the drain itself sends."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        direct = RecordingDirectSink()
        _, ring, _ = counted.engine.submit(direct_target(ours, direct))
        counted.engine.commit([(ring, 1)], [(ring, FinishReason.LENGTH)])
        await until(lambda: direct.calls)
    assert counted.reasons == [FinishReason.LENGTH]


async def test_death_of_the_engine_is_an_error_of_what_was_open(counted: Counted) -> None:
    """What it had finished keeps its reason."""
    _, finished, _ = counted.engine.submit()
    counted.engine.submit()
    counted.engine.commit([(finished, 1)], [(finished, FinishReason.STOP)])
    counted.engine.client.engine_died(DIED)
    assert counted.reasons == [FinishReason.STOP, FinishReason.ERROR]


async def test_shutdown_aborts_what_is_open(counted: Counted) -> None:
    """Once each."""
    counted.engine.submit()
    counted.engine.submit()
    counted.engine.client.fail_all(DIED)
    assert counted.reasons == [FinishReason.ABORT] * 2


def test_durations_are_counted_up_to_bounds() -> None:
    """A duration counts at each bound from its own on; the last number is that of all, the sum is exact."""
    ends = SequenceEnds()
    for seconds in (BOUNDS[0], BOUNDS[1] + 1e-9, 10_000.0):
        ends.count(FinishReason.STOP, seconds)
    assert ends.up_to_bounds() == [1, 1, *[2] * (len(BOUNDS) - 2), 3]
    assert ends.by_reason == {FinishReason.STOP: 3}
    assert ends.seconds == BOUNDS[0] + BOUNDS[1] + 1e-9 + 10_000
