"""The drain loop on a real arena; the test is the engine."""

import asyncio
import contextlib
import os
import socket
import time

import numpy as np
import pytest

from rbee.errors import QueueFullError
from rbee.messages import SIDE_RECORD, FinishReason, Submit, Wake, pack_token_ids
from rbee.sampling_params import SamplingParams
from rbee.server.errors import ApiError
from rbee.server.link.engine_client import Choice, EngineClient
from rbee.server.link.sinks import finish_error
from rbee.transport import Arena, Consumer, Outlet, Producer, Vocabulary, create_doorbell
from tests.fakes import RecordingDirectSink, RecordingSink

RINGS = 64
CAPACITY = 128
DIED = ApiError(503, "Died.", code="engine_died")


class Engine:
    """Both ends of an arena: the client under test, the producer and what was sent on the control channel."""

    def __init__(self, stack, **options):
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
        self.client = EngineClient(
            consumer, RINGS, self.sent.append, give_up=lambda: self.given_up.append(True), **options
        )
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
        """One step: [(ring, token), ...] and [(ring, finish), ...]; the logprob of token t is -t."""
        rings, token_ids = (np.array([entry[i] for entry in tokens], np.uint32) for i in (0, 1))
        ended = np.array([ring for ring, _ in finished], np.uint32)
        reasons = np.array([reason for _, reason in finished], np.uint32)
        return self.producer.commit(rings, token_ids, -token_ids.astype(np.float32), ended, reasons)

    def report(self, waiting):
        """What the engine says of its queue after a step."""
        self.producer.report(
            1000, sequences_running=0, sequences_waiting=waiting, kv_blocks=1, kv_blocks_used=0, preemptions=0,
            prompt_tokens=0, cached_prompt_tokens=0,
        )  # fmt: skip


async def until(condition):
    """Let the loop run until the condition holds."""
    while not condition():  # noqa: ASYNC110 - most conditions are on the shared memory
        await asyncio.sleep(0)


def with_engine(check, **options):
    """Run `await check(engine)` inside an event loop. The options are the client's."""

    async def run():
        with contextlib.ExitStack() as stack:
            async with asyncio.timeout(20):
                await check(Engine(stack, **options))

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


def test_batch_has_logprobs_and_what_was_cached():
    """Each token comes with its logprob, a note too; the finish comes with the number of cached prompt tokens."""

    async def check(engine):
        _, ring, sink = engine.submit()
        engine.commit([(ring, 10), (ring, SIDE_RECORD | 11), (ring, 12)])
        await until(lambda: sink.token_ids)
        assert (sink.token_ids, sink.cached_tokens) == ([10, SIDE_RECORD | 11, 12], None)
        assert sink.logprobs == [-10, -float(np.float32(SIDE_RECORD | 11)), -12]
        engine.commit([(ring, 13)], [(ring, FinishReason.DEADLINE | 70_000 << 8)])
        await until(lambda: sink.ends)
        assert (sink.ends, sink.cached_tokens) == ([FinishReason.DEADLINE], 70_000)

    with_engine(check)


def test_direct_sink_hears_of_the_end_only():
    """Its tokens are on its socket by then; the reason and the number of cached prompt tokens come separately."""

    async def check(engine):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            sink = RecordingDirectSink()
            parts = (b"<", b"<", b"", b">", b"]", b"", b"", b"", b".")
            outlet = Outlet(
                ours.fileno(), Vocabulary([b"a", b"b"]), parts,
                strip=False, prompt_tokens=1, stop_token_ids=[], timing=False, usage=False,
            )  # fmt: skip
            engine.client.submit("r", [1], SamplingParams(max_tokens=5), sink, outlet)
            [submitted] = engine.sent
            engine.producer.open(submitted.ring, submitted.generation)
            engine.commit([(submitted.ring, 0)])
            engine.commit([(submitted.ring, 1)], [(submitted.ring, FinishReason.STOP | 3 << 8)])
            await engine.client.wait_idle()
            assert sink.calls == [("finish", FinishReason.STOP, 3)]
            assert b'"a"' in theirs.recv(4096)

    with_engine(check)


def test_submit_says_everything_to_the_engine():
    """What the server knows of a request is in its record; the time is when it was submitted."""

    async def check(engine):
        before = time.monotonic_ns()
        engine.client.submit(
            "name", [1, 2], SamplingParams(max_tokens=5, seed=9), RecordingSink(),
            priority=-3, deadline_ns=123, cache_salt="salt",
        )  # fmt: skip
        [submitted] = engine.sent
        assert (submitted.request_id, submitted.prompt) == ("name", pack_token_ids([1, 2]))
        assert submitted.sampling == SamplingParams(max_tokens=5, seed=9)
        assert (submitted.priority, submitted.deadline_ns, submitted.cache_salt) == (-3, 123, "salt")
        assert before <= submitted.received_ns <= time.monotonic_ns()

    with_engine(check)


def choices(number):
    """So many choices of one request, each with a seed of its own."""
    return [Choice(SamplingParams(max_tokens=5, seed=n), RecordingSink()) for n in range(number)]


def test_choices_are_sequences_of_their_own():
    """Each has its ring, its parameters and its tokens, and can be cancelled alone; what they share is in each."""

    async def check(engine):
        asked = choices(3)
        streams = engine.client.submit_all("r", [7], asked, priority=2, deadline_ns=5, cache_salt="s")
        submitted = list(engine.sent)
        assert [record.sampling for record in submitted] == [choice.sampling for choice in asked]
        assert len({record.ring for record in submitted}) == engine.client.rings_in_use == 3
        for n, record in enumerate(submitted):
            assert (record.priority, record.deadline_ns, record.cache_salt) == (2, 5, "s")
            assert record.prompt == pack_token_ids([7])
            engine.producer.open(record.ring, record.generation)
            engine.commit([(record.ring, n)])
        await until(lambda: all(choice.sink.token_ids for choice in asked))
        assert [choice.sink.token_ids for choice in asked] == [[0], [1], [2]]
        streams[1].cancel()
        assert engine.producer.take_cancelled() == [submitted[1].ring]

    with_engine(check)


def test_all_choices_or_none():
    """When there are rings for some only, nothing is taken and the engine hears nothing."""

    async def check(engine):
        engine.client.submit_all("r", [1], choices(RINGS - 2))
        engine.sent.clear()
        with pytest.raises(QueueFullError, match=f"holds {RINGS - 2} requests"):
            engine.client.submit_all("r", [1], choices(3))
        assert (engine.sent, engine.client.rings_in_use) == ([], RINGS - 2)
        assert len(engine.client.submit_all("r", [1], choices(2))) == 2

    with_engine(check)


def test_queue_is_bounded_by_what_the_engine_says():
    """With so many waiting that no more may, a request is refused; when the engine has taken one up it is not."""

    async def check(engine):
        engine.report(3)
        with pytest.raises(QueueFullError, match="3 requests or more wait"):
            engine.submit()
        assert (engine.sent, engine.client.rings_in_use) == ([], 0)
        engine.report(2)
        engine.submit()

    with_engine(check, max_running=4, max_queued=3)


def test_queue_is_bounded_within_a_step():
    """Before the engine has said anything, as many are taken as run and wait; a finish makes room."""

    async def check(engine):
        rings = [engine.submit()[1] for _ in range(4 + 3)]
        with pytest.raises(QueueFullError, match="--max-queued-requests"):
            engine.submit()
        engine.commit([], [(rings[0], FinishReason.STOP)])
        await until(lambda: engine.client.rings_in_use == 6)
        engine.submit()

    with_engine(check, max_running=4, max_queued=3)


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        (FinishReason.ABORT, 503, "aborted"),
        (FinishReason.ERROR, 500, "engine_error"),
        (FinishReason.DEADLINE, 408, "REQUEST_TIMEOUT"),
        (FinishReason.SLOW_READER, 408, "slow_reader"),
    ],
)
def test_ends_that_are_errors(reason, status, code):
    """Each has a status and a word of its own; the client's own ends are no errors."""
    error = finish_error(reason)
    assert (error.status, error.code) == (status, code)
    assert finish_error(FinishReason.STOP) is finish_error(FinishReason.LENGTH) is None


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
