"""The server's pulse on a real arena and a real event loop."""

import asyncio
import contextlib
import gc
import os
import time

from rbee.server.link.heartbeat import Pulse
from rbee.transport import Arena, Consumer, create_doorbell


@contextlib.contextmanager
def make_consumer():
    """A consumer of an arena without an engine."""
    with contextlib.ExitStack() as stack:
        arena = Arena.create(num_rings=64, ring_capacity=2, epoch=1)
        stack.callback(arena.close)
        stack.callback(arena.unlink)
        doorbell = create_doorbell()
        stack.callback(os.close, doorbell)
        consumer = Consumer(arena, doorbell)
        stack.callback(consumer.close)
        yield arena, consumer


async def until(condition):
    """Wait for it."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - a timer of the code under test
            await asyncio.sleep(0.01)


def test_beats_and_collections_are_counted():
    """An observer sees the state, a heartbeat that goes on, and each garbage collection; and nothing after the end."""

    async def run(consumer):
        pulse = Pulse(consumer, lambda: 2, on_stale=lambda: None)
        pulse.start()
        first = consumer.counters()
        assert first["server_state"] == 2
        assert 0 < first["server_heartbeat_ns"] <= time.monotonic_ns()
        gc.collect()
        await until(lambda: consumer.counters()["server_heartbeat_ns"] > first["server_heartbeat_ns"])
        pulse.stop()
        last = consumer.counters()
        assert last["gc_pauses"] >= first["gc_pauses"] + 1
        assert last["gc_pause_ns"] > first["gc_pause_ns"]
        gc.collect()
        assert consumer.counters()["gc_pauses"] == last["gc_pauses"]

    with make_consumer() as (_, consumer):
        asyncio.run(run(consumer))


def test_lost_wakeup_is_found():
    """A ready bit behind an armed doorbell, which no engine leaves there, is noticed at the second look and counted."""

    async def run(arena, consumer):
        found = []
        pulse = Pulse(consumer, lambda: 2, on_stale=lambda: found.append(True))
        ready = int.from_bytes(arena.buffer[80:88], "little")  # where the header says that the bitmap is
        arena.buffer[ready : ready + 8] = (1).to_bytes(8, "little")
        pulse.start()
        await until(lambda: found)
        pulse.stop()
        assert consumer.counters()["stale_wakeups"] >= 1

    with make_consumer() as (arena, consumer):
        asyncio.run(run(arena, consumer))
