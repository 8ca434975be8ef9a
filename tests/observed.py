"""A server to look at, whose every number a test decides: a process that has arenas, and nothing else of a server."""

from __future__ import annotations

import contextlib
import os
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rbee.transport import Arena, Consumer, Producer, create_doorbell

if TYPE_CHECKING:
    from collections.abc import Iterator


class Epoch:
    """One engine's time: an arena, both of its sides, and one open ring."""

    def __init__(self, number: int) -> None:
        self.arena = Arena.create(num_rings=64, ring_capacity=1024, epoch=number)
        self.arena.unlink()
        self.doorbell = create_doorbell()
        self.producer = Producer(self.arena, self.doorbell)
        self.consumer = Consumer(self.arena, self.doorbell)
        assigned = self.consumer.assign()
        assert assigned is not None
        self.ring, _ = assigned
        self.producer.open(*assigned)

    def close(self) -> None:
        """Give everything back."""
        self.producer.close()
        self.consumer.close()
        self.arena.close()
        os.close(self.doorbell)


class ObservedServer:
    """The process, as tests see it: each call is carried out there. It starts without an arena."""

    def __init__(self) -> None:
        self._epochs: list[Epoch] = []

    def pid(self) -> int:
        """Of the process."""
        return os.getpid()

    def start_engine(self, epoch: int) -> None:
        """One more arena; all other calls mean the latest."""
        self._epochs.append(Epoch(epoch))

    def stop_engine(self) -> None:
        """Close the oldest arena."""
        self._epochs.pop(0).close()

    def close(self) -> None:
        """Close all arenas."""
        while self._epochs:
            self.stop_engine()

    def step(self, num_tokens: int, *step_ns: int) -> None:
        """One commit, drained and late by 20 us, and as many steps reported as there are durations; then both beat."""
        epoch = self._epochs[-1]
        none = np.empty(0, np.uint32)
        rings = np.full(num_tokens, epoch.ring, np.uint32)
        epoch.producer.commit(rings, rings, np.zeros(num_tokens, np.float32), none, none.astype(np.uint32))
        for ns in step_ns:
            epoch.producer.report(
                ns,
                sequences_running=3,
                sequences_waiting=2,
                kv_blocks=4096,
                kv_blocks_used=1024,
                preemptions=1,
                prompt_tokens=7,
                cached_prompt_tokens=5,
            )
        epoch.producer.beat(3)
        epoch.consumer.drain()
        epoch.consumer.note_loop_lag(20_000)
        epoch.consumer.note_collection(3_000_000)
        epoch.consumer.beat(1)

    def lag(self, *durations: int) -> None:
        """The server's event loop was late by these, in ns."""
        for ns in durations:
            self._epochs[-1].consumer.note_loop_lag(ns)

    def cancel(self) -> None:
        """End the request."""
        self._epochs[-1].consumer.cancel(self._epochs[-1].ring)

    def counters(self) -> dict[str, int]:
        """As the server's own side reads them."""
        return self._epochs[-1].consumer.counters()

    def content(self) -> bytes:
        """Of the arena, to the last byte."""
        return bytes(self._epochs[-1].arena.buffer)

    def damage(self) -> None:
        """Change the arena's first byte."""
        self._epochs[-1].arena.buffer[0] ^= 1

    def rung(self) -> bool:
        """Whether the doorbell is readable; it is not afterwards."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._epochs[-1].doorbell)
            return True
        return False

    def hold_segment(self, content: bytes) -> str:
        """Hold a nameless file that was called like an arena of this process, with this content; the name it had."""
        path = Path(f"/dev/shm/rbee-{os.getpid()}-f0e1d2c3")
        file = path.open("wb+", buffering=0)
        path.unlink()
        file.write(content)
        self._held = file
        return path.name

    def change_segment(self, content: bytes) -> None:
        """Overwrite that file."""
        self._held.seek(0)
        self._held.write(content)


class _Manager(BaseManager):
    """Starts the process and carries the calls."""


_Manager.register("ObservedServer", ObservedServer)


@contextlib.contextmanager
def observed_server() -> Iterator[ObservedServer]:
    """A process for one test."""
    with _Manager(ctx=get_context("spawn")) as manager:
        server: ObservedServer = manager.ObservedServer()  # type: ignore[attr-defined] # added by register()
        try:
            yield server
        finally:
            server.close()
