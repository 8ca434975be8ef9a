"""The server's heartbeat on a real arena and a real event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from typing import TYPE_CHECKING

import pytest

from rbee.server.link.heartbeat import Heartbeat
from rbee.transport import Arena, Consumer, ServerState, create_doorbell

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

_PATIENCE = 30.0  # seconds after which a test that waits for a beat fails


@pytest.fixture
def arena() -> Iterator[Arena]:
    """Without an engine."""
    with contextlib.ExitStack() as stack:
        arena = Arena.create(num_rings=64, ring_capacity=2, epoch=1)
        stack.callback(arena.close)
        stack.callback(arena.unlink)
        yield arena


@pytest.fixture
def consumer(arena: Arena) -> Iterator[Consumer]:
    """Of that arena."""
    doorbell = create_doorbell()
    consumer = Consumer(arena, doorbell)
    yield consumer
    consumer.close()
    os.close(doorbell)


async def test_beats_and_collections_are_counted(consumer: Consumer) -> None:
    """An observer sees the state, a heartbeat that goes on, and each garbage collection; and nothing after the end."""
    beats: list[ServerState] = []
    second_beat = asyncio.Event()

    def state() -> ServerState:
        if beats:
            second_beat.set()
        beats.append(ServerState.READY)
        return ServerState.READY

    heartbeat = Heartbeat(consumer, state, on_stale=lambda: None)
    heartbeat.start()
    first = consumer.counters()
    assert first["server_state"] == ServerState.READY
    assert 0 < first["server_heartbeat_ns"] <= time.monotonic_ns()
    gc.collect()
    async with asyncio.timeout(_PATIENCE):
        await second_beat.wait()
    assert consumer.counters()["server_heartbeat_ns"] > first["server_heartbeat_ns"]
    heartbeat.stop()
    last = consumer.counters()
    assert last["gc_pauses"] >= first["gc_pauses"] + 1
    assert last["gc_pause_ns"] > first["gc_pause_ns"]
    gc.collect()
    assert consumer.counters()["gc_pauses"] == last["gc_pauses"]


async def test_lost_wakeup_is_found(arena: Arena, consumer: Consumer, caplog: pytest.LogCaptureFixture) -> None:
    """A ready bit behind an armed doorbell, which no engine leaves there, is found at the second check and counted."""
    found = asyncio.Event()
    heartbeat = Heartbeat(consumer, lambda: ServerState.READY, on_stale=found.set)
    ready = int.from_bytes(arena.buffer[88:96], "little")  # where the header says that the bitmap is
    arena.buffer[ready : ready + 8] = (1).to_bytes(8, "little")
    heartbeat.start()
    async with asyncio.timeout(_PATIENCE):
        await found.wait()
    heartbeat.stop()
    assert consumer.counters()["stale_wakeups"] >= 1
    assert "without waking the server" in caplog.text
