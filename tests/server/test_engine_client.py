"""The drain loop on a real arena; the test is the engine."""

import asyncio
import contextlib
import os

import numpy as np
import pytest
from fakes import RecordingSink

from rbee.errors import QueueFullError
from rbee.messages import FinishReason, Submit, Wake
from rbee.sampling_params import SamplingParams
from rbee.server.engine_client import EngineClient
from rbee.server.errors import ApiError
from rbee.transport import Arena, Consumer, Producer, create_doorbell

RINGS = 64
CAPACITY = 128
DIED = ApiError(503, "Died.", code="engine_died")


class Engine:
    """Both ends of an arena: the client under test, the producer and what was sent on the control channel."""

    def __init__(self, stack):
        self.arena = Arena.create(num_rings=RINGS, ring_capacity=CAPACITY, epoch=1)
        stack.callback(self.arena.close)
        stack.callback(self.arena.unlink)
        doorbell = create_doorbell()
        stack.callback(os.close, doorbell)
        consumer = Consumer(self.arena, doorbell)
        stack.callback(consumer.close)
        self.producer = Producer(self.arena, doorbell)
        stack.callback(self.producer.close)
        self.sent = []
        self.given_up = []
        self.client = EngineClient(consumer, RINGS, self.sent.append, give_up=lambda: self.given_up.append(True))
        self.doorbell = doorbell
        asyncio.get_running_loop().add_reader(doorbell, self.client.on_wake)
        stack.callback(asyncio.get_running_loop().remove_reader, doorbell)

    def submit(self, sink=None):
        """A request that the engine has taken; its stream, its ring and its sink."""
        sink = sink or RecordingSink()
        stream = self.client.submit("r", [1, 2, 3], SamplingParams(max_tokens=5), sink)
        submitted = self.sent.pop()
        assert isinstance(submitted, Submit)
        self.producer.open(submitted.ring, submitted.generation)
        return stream, submitted.ring, sink

    def commit(self, tokens, finished=()):
        """One step: [(ring, token), ...] and [(ring, reason), ...]."""
        rings, token_ids = (np.array([entry[i] for entry in tokens], np.uint32) for i in (0, 1))
        ended = np.array([ring for ring, _ in finished], np.uint32)
        reasons = np.array([reason for _, reason in finished], np.uint8)
        return self.producer.commit(rings, token_ids, np.zeros(len(tokens), np.float32), ended, reasons)


async def until(condition):
    """Let the loop run until the condition holds."""
    while not condition():  # noqa: ASYNC110 - most conditions are on the shared memory
        await asyncio.sleep(0)


def with_engine(check):
    """Run `await check(engine)` inside an event loop."""

    async def run():
        with contextlib.ExitStack() as stack:
            async with asyncio.timeout(20):
                await check(Engine(stack))

    asyncio.run(run())


def test_each_sink_gets_its_own_tokens():
    """Tokens of one step go to their requests, with the commit's time; a finish gives the ring back."""

    async def check(engine):
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

    with_engine(check)


def test_full_house_is_refused():
    """When every ring is taken there is an error to say so, and a finish makes room."""

    async def check(engine):
        rings = [engine.submit()[1] for _ in range(RINGS)]
        with pytest.raises(QueueFullError, match="64 requests"):
            engine.submit()
        engine.commit([], [(rings[5], FinishReason.STOP)])
        await until(lambda: engine.client.rings_in_use == RINGS - 1)
        assert engine.submit()[1] == rings[5]

    with_engine(check)


def test_cancelled_request_hears_nothing_more_and_keeps_its_ring_until_the_end():
    """The engine is told; what it still publishes goes nowhere; its finish frees the ring."""

    async def check(engine):
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

    with_engine(check)


def test_stale_stream_cannot_touch_the_rings_next_request():
    """A request that has ended may be cancelled, paused or resumed late; its ring belongs to another one by then."""

    async def check(engine):
        stream, ring, _ = engine.submit()
        engine.commit([], [(ring, FinishReason.STOP)])
        await until(lambda: engine.client.rings_in_use == 0)
        _, again, sink = engine.submit()
        assert again == ring
        stream.cancel()
        stream.pause()
        assert engine.producer.take_cancelled() == []
        engine.commit([(ring, 7)])
        await until(lambda: sink.token_ids == [7])

    with_engine(check)


def test_cancel_wakes_a_sleeping_engine():
    """An engine that waits for something to do is told to look."""

    async def check(engine):
        stream, _, _ = engine.submit()
        engine.producer.arm_wait()
        stream.cancel()
        assert engine.sent == [Wake()]

    with_engine(check)


def test_room_in_a_full_ring_wakes_a_sleeping_engine():
    """An engine whose only sequence waits for its client is told when there is space."""

    async def check(engine):
        _, ring, sink = engine.submit()
        engine.commit([(ring, n) for n in range(CAPACITY)])
        engine.producer.arm_wait()
        await until(lambda: len(sink.token_ids) == CAPACITY)
        assert engine.sent == [Wake()]

    with_engine(check)


def test_paused_request_waits_in_its_ring():
    """Its tokens and its finish stay there, the neighbours go on, and resuming delivers all of it."""

    async def check(engine):
        stream, ring, sink = engine.submit()
        _, other, neighbour = engine.submit()
        stream.pause()
        engine.commit([(ring, 1), (other, 2)], [(ring, FinishReason.LENGTH)])
        await until(lambda: neighbour.token_ids)
        assert (sink.token_ids, sink.ends) == ([], [])
        stream.resume()
        await until(lambda: sink.ends)
        assert sink.token_ids == [1]

    with_engine(check)


def test_paused_request_that_is_cancelled_gives_its_ring_back():
    """Nobody will resume it any more; its finish has to be seen all the same."""

    async def check(engine):
        stream, ring, _ = engine.submit()
        stream.pause()
        engine.commit([(ring, 1)], [(ring, FinishReason.LENGTH)])
        engine.client.on_wake()
        assert engine.client.rings_in_use == 1
        stream.cancel()
        await until(lambda: engine.client.rings_in_use == 0)

    with_engine(check)


def test_more_than_one_drain_can_take():
    """A burst of twice what one drain takes is delivered over several turns of the loop, and all of it."""

    async def check(engine):
        requests = [engine.submit() for _ in range(RINGS)]
        for _, ring, _ in requests:
            engine.commit([(ring, n) for n in range(CAPACITY)])
        await until(lambda: all(sink.token_ids == [*range(CAPACITY)] for *_, sink in requests))

    with_engine(check)


def test_broken_sink_ends_alone():
    """An error while delivering ends that request with an error, cancels it, and the others never notice."""

    async def check(engine):
        _, ring, broken = engine.submit(RecordingSink(broken=True))
        _, other, neighbour = engine.submit()
        engine.commit([(ring, 1), (other, 2)])
        await until(lambda: neighbour.token_ids == [2])
        assert [error.code for error in broken.ends] == ["internal_error"]
        assert engine.producer.take_cancelled() == [ring]

    with_engine(check)


def test_dead_engines_last_tokens_come_before_the_error():
    """Also those of a paused request, and those that no doorbell announced any more."""

    async def check(engine):
        _, ring, sink = engine.submit()
        stream, other, paused = engine.submit()
        stream.pause()
        engine.commit([(ring, 1), (other, 2)])
        engine.client.engine_died(DIED)
        assert (sink.token_ids, sink.ends) == ([1], [DIED])
        assert (paused.token_ids, paused.ends) == ([2], [DIED])

    with_engine(check)


def test_shutdown_ends_and_cancels_everything():
    """Each open request gets the error once, and the engine need not go on."""

    async def check(engine):
        _, ring, sink = engine.submit()
        waiting = asyncio.ensure_future(engine.client.wait_idle())
        await asyncio.sleep(0)
        assert not waiting.done()
        engine.client.fail_all(DIED)
        engine.client.fail_all(DIED)
        assert sink.ends == [DIED]
        assert engine.producer.take_cancelled() == [ring]
        await waiting

    with_engine(check)


def test_retry_after_is_bounded():
    """From the rate of finished requests, at least a second, at most a minute; a second when nothing is known."""

    async def check(engine):
        assert engine.client.retry_after() == 1
        rings = [engine.submit()[1] for _ in range(4)]
        engine.commit([], [(ring, FinishReason.STOP) for ring in rings])
        await until(lambda: engine.client.rings_in_use == 0)
        assert engine.client.retry_after() == 1
        engine.client._finished_at[0] -= 40
        assert 10 <= engine.client.retry_after() <= 11
        engine.client._finished_at[0] -= 4000
        assert engine.client.retry_after() == 60

    with_engine(check)


def test_corrupt_arena_ends_the_engine():
    """Indices that no ring can have are never followed: the engine is given up, and open requests then fail."""

    async def check(engine):
        _, ring, sink = engine.submit()
        engine.commit([(ring, 1)])
        tails = int.from_bytes(engine.arena.buffer[40:48], "little")  # as its header says
        engine.arena.buffer[tails + 4 * ring : tails + 4 * ring + 4] = (CAPACITY + 2).to_bytes(4, "little")
        await until(lambda: engine.given_up)
        assert (sink.token_ids, sink.ends) == ([], [])
        engine.client.engine_died(DIED)
        assert sink.ends == [DIED]

    with_engine(check)
