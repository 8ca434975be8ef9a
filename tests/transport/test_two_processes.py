"""Tokens through a real arena, a real eventfd and a real control socket, between two real processes."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rbee.transport import Arena, Consumer, create_doorbell
from rbee.transport.control import FrameDecoder, frame
from tests.transport.ring_engine import ABORT, LENGTH, SUBMIT, token

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rbee.transport import Drained

PATIENCE = 30.0
WAIT_WORD = 256  # where the engine announces its sleep, see native/include/rbee/layout.h


class RingServer:
    """The server's part: starts the engine process and reads what it publishes."""

    def __init__(self, ring_capacity: int) -> None:
        self.arena = Arena.create(num_rings=64, ring_capacity=ring_capacity, epoch=1, first_index=2**32 - 3)
        self.doorbell = create_doorbell()
        self.consumer = Consumer(self.arena, self.doorbell)
        self.control, theirs = socket.socketpair()
        program = Path(__file__).with_name("ring_engine.py")
        self.engine = subprocess.Popen(
            [sys.executable, "-W", "error", program, self.arena.name, str(self.doorbell), str(theirs.fileno())],
            pass_fds=[self.doorbell, theirs.fileno()],
            stderr=subprocess.PIPE,
        )
        theirs.close()
        self.control.settimeout(PATIENCE)
        assert FrameDecoder().feed(self.control.recv(4096)) == [b"attached"]
        self.arena.unlink()

    def submit(self, seed: int, length: int) -> int:
        """Start a request; its ring."""
        assigned = self.consumer.assign()
        assert assigned is not None
        ring, generation = assigned
        self.control.sendall(frame(SUBMIT.pack(ring, generation, seed, length)))
        return ring

    def cancel(self, ring: int) -> None:
        """End a request early, waking the engine if it sleeps."""
        if self.consumer.cancel(ring):
            self.control.sendall(frame(b""))

    def wait(self) -> None:
        """Sleep until the engine rings; a wakeup that never comes is a failure that says where."""
        if not select.select([self.doorbell], [], [], PATIENCE)[0]:
            pytest.fail(f"missed wakeup beside {self.consumer.in_use} requests: {self.consumer.counters()}")

    def wait_until_engine_waits(self) -> None:
        """Return when the engine has announced its sleep in shared memory, with all it published seen."""
        deadline = time.monotonic() + PATIENCE
        while self.arena.buffer[WAIT_WORD] == 0:
            assert time.monotonic() < deadline, f"the engine does not go to sleep: {self.consumer.counters()}"
            os.sched_yield()
        self.drain()

    def drain(self, budget: int = 4096) -> Drained:
        """Take what is there, waking an engine that waits for space."""
        drained = self.consumer.drain(budget)
        if drained.needs_wake:
            self.control.sendall(frame(b""))
        return drained

    def close(self) -> str:
        """End the engine by closing its control channel; what it wrote to stderr."""
        self.control.close()
        stderr = self.engine.communicate(timeout=PATIENCE)[1].decode()
        self.consumer.close()
        self.arena.close()
        os.close(self.doorbell)
        return stderr


@pytest.fixture
def server() -> Iterator[RingServer]:
    """A server with rings of four records, whose engine must have nothing to complain about in the end."""
    server = RingServer(ring_capacity=4)
    yield server
    assert server.close() == ""


def test_every_request_gets_exactly_its_tokens(server):
    """600 requests through 64 small rings, some read late, some cancelled: all tokens, in order, and one end each."""
    choice = random.Random(20261122)
    unsubmitted = [(seed, choice.randint(1, 30)) for seed in range(600)]
    open_requests: dict[int, tuple[int, int]] = {}
    received: dict[int, int] = {}
    paused: list[int] = []
    cancelled: set[int] = set()
    reasons: list[int] = []
    while unsubmitted or open_requests:
        while unsubmitted and server.consumer.in_use < 64:
            seed, length = unsubmitted.pop()
            ring = server.submit(seed, length)
            open_requests[ring] = (seed, length)
            received[ring] = 0
        for ring in paused:
            if ring in open_requests:
                server.consumer.resume(ring)
        paused = [ring for ring in open_requests if choice.random() < 0.1]
        for ring in paused:
            server.consumer.pause(ring)
        if choice.random() < 0.2:
            ring = choice.choice(list(open_requests))
            cancelled.add(open_requests[ring][0])
            server.cancel(ring)
        drained = server.drain(choice.randint(1, 100))
        start = 0
        for ring, end, finish in zip(drained.rings, drained.ends, drained.finishes, strict=True):
            seed, length = open_requests[ring]
            assert drained.tokens[start:end] == [token(seed, received[ring] + i) for i in range(end - start)]
            received[ring] += end - start
            start = end
            if finish:
                assert (finish == LENGTH and received[ring] == length) or (finish == ABORT and seed in cancelled)
                reasons.append(finish)
                del open_requests[ring]
        if not drained.more and not paused and open_requests and not drained.finishes:
            server.wait()
    counters = server.consumer.counters()
    assert len(reasons) == 600
    assert server.consumer.in_use == 0
    assert counters["tokens"] == counters["tokens_drained"]
    assert counters["steps"] == counters["wakes_written"] + counters["wakes_elided"]


def test_engine_that_waits_for_space_is_woken_by_a_drain(server):
    """The only sequence fills its ring, the engine sleeps, and each drain gets it going again until the end."""
    ring = server.submit(seed=1, length=200)
    tokens: list[int] = []
    while len(tokens) < 196:
        server.consumer.pause(ring)
        server.wait_until_engine_waits()
        assert server.consumer.resume(ring)
        drained = server.drain()
        assert (len(drained.tokens), drained.needs_wake) == (4, True)
        tokens += drained.tokens
    while server.consumer.in_use:
        drained = server.drain()
        tokens += drained.tokens
        if not drained.more and server.consumer.in_use:  # with more, nobody rings
            server.wait()
    assert tokens == [token(1, i) for i in range(200)]
    assert server.consumer.counters()["full_ring_pauses"] >= 49


def test_engine_that_sleeps_beside_a_full_ring_hears_a_cancel(server):
    """The reader stopped, the ring is full, the engine sleeps; a cancel alone brings the finish."""
    ring = server.submit(seed=1, length=200)
    server.consumer.pause(ring)
    server.wait_until_engine_waits()
    server.cancel(ring)
    server.wait()
    assert server.consumer.counters()["engine_wakes"] == 1
    assert server.drain().rings == []
    assert server.consumer.resume(ring)
    drained = server.drain()
    assert (drained.tokens, drained.finishes) == ([token(1, i) for i in range(4)], [ABORT])
    assert server.consumer.in_use == 0


def test_tokens_of_a_killed_engine_can_still_be_drained(server):
    """What was committed before SIGKILL arrives after it; nothing of the segment is left in the file system."""
    ring = server.submit(seed=7, length=200)
    server.wait()
    server.engine.send_signal(signal.SIGKILL)
    server.engine.wait(PATIENCE)
    server.consumer.expect_all()
    drained = server.consumer.drain()
    assert drained.rings == [ring]
    assert drained.tokens == [token(7, i) for i in range(len(drained.tokens))] != []
    assert not Path("/dev/shm", server.arena.name).exists()
