"""The drain loop on a real arena; the test is the engine."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from typing import TYPE_CHECKING

import numpy as np
import pytest

from rbee.messages import SIDE_RECORD, FinishReason, Submit, Wake
from rbee.sampling_params import SamplingParams
from rbee.server.link.sequences import Choice, DirectTarget
from tests.fakes import RecordingDirectSink, RecordingSink
from tests.server.link.link_parts import CAPACITY, DIED, RINGS, direct_target, running_engine, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rbee.server.link.sequences import SequenceHandle
    from rbee.server.link.sinks import TokenBatch
    from tests.server.link.link_parts import Engine

pytestmark = pytest.mark.anyio


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


async def test_each_sink_gets_its_own_tokens(engine: Engine) -> None:
    """Tokens of one step go to their requests, with the commit's time; a finish gives the ring back."""
    _, first, one = engine.submit()
    _, second, two = engine.submit()
    at = engine.commit([(first, 10), (second, 20), (first, 11)])
    await until(lambda: two.token_ids)
    engine.commit([(second, 21)], [(second, FinishReason.LENGTH)])
    await until(lambda: two.ends)
    assert (one.token_ids, one.ends) == ([10, 11], [])
    assert one.commit_ns == [at, at]
    assert (two.token_ids, two.ends) == ([20, 21], [FinishReason.LENGTH])
    assert engine.client.rings_in_use == 1
    engine.commit([], [(first, FinishReason.STOP)])
    await engine.client.wait_idle()
    assert engine.client.rings_in_use == 0


async def test_batch_has_logprobs_and_the_cached_tokens(engine: Engine) -> None:
    """Each record comes with its logprob; the finish comes with the number of cached prompt tokens."""
    _, ring, sink = engine.submit()
    engine.commit([(ring, 10), (ring, SIDE_RECORD | 11), (ring, 12)])
    await until(lambda: sink.token_ids)
    assert (sink.token_ids, sink.cached_tokens) == ([10, SIDE_RECORD | 11, 12], None)
    assert sink.logprobs == [-10, -float(np.float32(SIDE_RECORD | 11)), -12]
    engine.commit([(ring, 13)], [(ring, FinishReason.DEADLINE | 70_000 << 8)])
    await until(lambda: sink.ends)
    assert (sink.ends, sink.cached_tokens) == ([FinishReason.DEADLINE], 70_000)


async def test_direct_sink_gets_the_end_only(engine: Engine, sockets: tuple[socket.socket, socket.socket]) -> None:
    """Its tokens are on its socket by then; the reason and the number of cached prompt tokens come separately."""
    ours, theirs = sockets
    sink = RecordingDirectSink()
    _, ring, _ = engine.submit(direct_target(ours, sink))
    engine.commit([(ring, 0)])
    engine.commit([(ring, 1)], [(ring, FinishReason.STOP | 3 << 8)])
    await engine.client.wait_idle()
    assert sink.calls == [("finish", FinishReason.STOP, 3)]
    assert b'<"a">' in theirs.recv(4096)


async def test_redirected_stream_goes_to_its_new_sink(
    engine: Engine, sockets: tuple[socket.socket, socket.socket]
) -> None:
    """What a paused ring holds is delivered to the sink that took over, or written by its outlet."""
    ours, theirs = sockets
    requests = [engine.submit() for _ in range(2)]
    new, direct = RecordingSink(), RecordingDirectSink()
    sinks: list[RecordingSink | DirectTarget] = [new, direct_target(ours, direct)]
    for (stream, ring, _), sink in zip(requests, sinks, strict=True):
        stream.pause()
        engine.commit([(ring, 0)], [(ring, FinishReason.STOP)])
        engine.client.on_wake()
        stream.redirect(sink)
        stream.resume()
    await engine.client.wait_idle()
    assert [sink.token_ids for *_, sink in requests] == [[], []]
    assert (new.token_ids, new.ends) == ([0], [FinishReason.STOP])
    assert direct.calls == [("finish", FinishReason.STOP, 0)]
    assert b'<"a">]' in theirs.recv(4096)
    requests[0][0].redirect(RecordingSink())  # after the end it does nothing


async def test_cancelled_request_gets_nothing_more_and_keeps_its_ring_until_the_end(engine: Engine) -> None:
    """The engine sees the cancel; what it still publishes goes nowhere; its finish frees the ring."""
    stream, ring, sink = engine.submit()
    _, other, neighbour = engine.submit()
    stream.cancel()
    stream.cancel()
    assert engine.producer.take_cancelled() == [ring]
    engine.commit([(ring, 1), (other, 2)])
    await until(lambda: neighbour.token_ids)
    assert engine.client.rings_in_use == 2
    engine.commit([], [(ring, FinishReason.ABORT)])
    await until(lambda: engine.client.rings_in_use == 1)
    assert (sink.token_ids, sink.ends) == ([], [])


async def test_stale_stream_cannot_touch_the_rings_next_request(engine: Engine) -> None:
    """A request that has ended may be cancelled, paused or resumed late; its ring belongs to another one by then."""
    stream, ring, _ = engine.submit()
    engine.commit([], [(ring, FinishReason.STOP)])
    await until(lambda: engine.client.rings_in_use == 0)
    _, again, sink = engine.submit()
    assert again == ring
    stream.cancel()
    stream.pause()
    stream.redirect(RecordingSink())
    assert engine.producer.take_cancelled() == []
    engine.commit([(ring, 7)])
    await until(lambda: sink.token_ids == [7])


async def test_cancel_wakes_a_sleeping_engine(engine: Engine) -> None:
    """An engine that waits for something to do is sent Wake."""
    stream, _, _ = engine.submit()
    engine.producer.arm_wait()
    stream.cancel()
    assert engine.sent == [Wake()]


async def test_room_in_a_full_ring_wakes_a_sleeping_engine(engine: Engine) -> None:
    """An engine whose only sequence waits for its client is sent Wake when there is space."""
    _, ring, sink = engine.submit()
    engine.commit([(ring, n) for n in range(CAPACITY)])
    engine.producer.arm_wait()
    await until(lambda: len(sink.token_ids) == CAPACITY)
    assert engine.sent == [Wake()]


async def test_paused_request_waits_in_its_ring(engine: Engine) -> None:
    """Its tokens and its finish stay there, the neighbours go on, and resuming delivers all of it."""
    stream, ring, sink = engine.submit()
    _, other, neighbour = engine.submit()
    stream.pause()
    engine.commit([(ring, 1), (other, 2)], [(ring, FinishReason.LENGTH)])
    await until(lambda: neighbour.token_ids)
    assert (sink.token_ids, sink.ends) == ([], [])
    stream.resume()
    await until(lambda: sink.ends)
    assert sink.token_ids == [1]


async def test_paused_request_that_is_cancelled_gives_its_ring_back(engine: Engine) -> None:
    """It will not be resumed any more; its finish has to be seen all the same."""
    stream, ring, _ = engine.submit()
    stream.pause()
    engine.commit([(ring, 1)], [(ring, FinishReason.LENGTH)])
    engine.client.on_wake()
    assert engine.client.rings_in_use == 1
    stream.cancel()
    await until(lambda: engine.client.rings_in_use == 0)


async def test_more_than_one_drain_can_take(engine: Engine) -> None:
    """A burst of twice what one drain takes is delivered over several turns of the loop, and all of it."""
    requests = [engine.submit() for _ in range(RINGS)]
    for _, ring, _ in requests:
        engine.commit([(ring, n) for n in range(CAPACITY)])
    await until(lambda: all(sink.token_ids == [*range(CAPACITY)] for *_, sink in requests))


async def test_busy_poll_delivers_and_goes_back_to_sleep() -> None:
    """While a request is open its tokens come by polling; afterwards the doorbell wakes the loop again."""
    with running_engine(busy_poll=True) as engine:
        for token in (1, 2):
            _, ring, sink = engine.submit()
            engine.commit([(ring, token)])
            await until(functools.partial(bool, sink.token_ids))
            engine.commit([], [(ring, FinishReason.STOP)])
            await engine.client.wait_idle()
            assert (sink.token_ids, sink.ends) == ([token], [FinishReason.STOP])
        abandoned, ring, _ = engine.submit()
        abandoned.cancel()
        await asyncio.sleep(0)
        engine.commit([], [(ring, FinishReason.ABORT)])
        await until(lambda: engine.client.rings_in_use == 0)


async def test_busy_poll_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looks that find nothing: an engine that shares the core computes meanwhile."""
    yields: list[None] = []
    monkeypatch.setattr(os, "sched_yield", lambda: yields.append(None))
    with running_engine(busy_poll=True) as engine:
        _, ring, sink = engine.submit()
        await until(lambda: len(yields) >= 3)
        engine.commit([(ring, 1)], [(ring, FinishReason.STOP)])
        await engine.client.wait_idle()
        assert sink.token_ids == [1]


async def test_broken_sink_ends_alone(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """An error while delivering ends that request with an error and cancels it; the others go on."""
    _, ring, broken = engine.submit(RecordingSink(broken=True))
    _, other, neighbour = engine.submit()
    engine.commit([(ring, 1), (other, 2)])
    await until(lambda: neighbour.token_ids == [2])
    assert [error.code for error in broken.ends] == ["internal_error"]
    assert engine.producer.take_cancelled() == [ring]
    assert "this sink is broken" in caplog.text


class Ending(RecordingSink):
    """One that ends another sequence, for which it has been held up, with its own end."""

    other: SequenceHandle

    def deliver(self, batch: TokenBatch) -> int:
        """As does a choice with an error, whose connection takes no more."""
        self.other.pause()
        self.other.resume()
        self.other.cancel()
        return super().deliver(batch)


async def test_sequences_that_end_together_may_end_each_other(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """What has ended with the same step is not touched any more, and not shown."""
    _, ring, first = engine.submit(Ending())
    first.other, other, second = engine.submit()
    engine.commit([], [(ring, FinishReason.ERROR), (other, FinishReason.ERROR)])
    await until(lambda: engine.client.rings_in_use == 0)
    assert (first.ends, second.ends, caplog.text) == ([FinishReason.ERROR], [], "")
    assert engine.producer.take_cancelled() == []


async def test_dead_engines_last_tokens_come_before_the_error(engine: Engine) -> None:
    """Also those of a paused request, and those that no doorbell announced any more."""
    _, ring, sink = engine.submit()
    stream, other, paused = engine.submit()
    stream.pause()
    engine.commit([(ring, 1), (other, 2)])
    engine.client.engine_died(DIED)
    assert (sink.token_ids, sink.ends) == ([1], [DIED])
    assert (paused.token_ids, paused.ends) == ([2], [DIED])


async def test_shutdown_ends_and_cancels_everything(
    engine: Engine, sockets: tuple[socket.socket, socket.socket]
) -> None:
    """Each open request, direct ones too, gets the error once, and the engine need not go on."""
    _, ring, sink = engine.submit()
    direct = RecordingDirectSink()
    _, direct_ring, _ = engine.submit(direct_target(sockets[0], direct))
    waiting = asyncio.ensure_future(engine.client.wait_idle())
    await asyncio.sleep(0)
    assert not waiting.done()
    engine.client.fail_all(DIED)
    engine.client.fail_all(DIED)
    assert sink.ends == [DIED]
    assert direct.calls == [("fail", DIED)]
    assert engine.producer.take_cancelled() == sorted([ring, direct_ring])
    await waiting


async def test_corrupt_arena_ends_the_engine(engine: Engine) -> None:
    """Indices that no ring can have are never followed: the engine is given up, and open requests then fail."""
    _, ring, sink = engine.submit()
    engine.commit([(ring, 1)])
    tails = int.from_bytes(engine.arena.buffer[40:48], "little")  # as its header says
    engine.arena.buffer[tails + 4 * ring : tails + 4 * ring + 4] = (CAPACITY + 2).to_bytes(4, "little")
    await until(lambda: engine.given_up)
    assert (sink.token_ids, sink.ends) == ([], [])
    engine.client.engine_died(DIED)
    assert sink.ends == [DIED]


async def test_submitted_choice_is_what_the_engine_gets(engine: Engine) -> None:
    """A choice whose sink needs the number of cached tokens early has that in its record."""
    choice = Choice(SamplingParams(max_tokens=5), RecordingSink(), report_cached=True)
    engine.client.submit_all("r", [1], [choice], received_ns=9)
    [submitted] = engine.sent
    assert isinstance(submitted, Submit)
    assert submitted.report_cached
