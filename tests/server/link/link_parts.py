"""What the tests of the drain loop share: an engine in this process, on a real arena."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from rbee.config import EngineConfig
from rbee.messages import Submit
from rbee.sampling_params import SamplingParams
from rbee.server.errors import Refusal, RefusalKind
from rbee.server.link.admission import ANYONE
from rbee.server.link.engine_client import EngineClient
from rbee.server.link.engine_process import EngineSettings
from rbee.server.link.sequences import Choice, DirectTarget
from rbee.transport import (
    Arena,
    Consumer,
    FrameTemplate,
    LastFrames,
    Outlet,
    Producer,
    Slot,
    Vocabulary,
    create_doorbell,
)
from tests.fakes import RecordingSink

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence

    from rbee.messages import ToEngine
    from rbee.server.link.admission import Requester
    from rbee.server.link.sequences import SequenceHandle
    from tests.fakes import RecordingDirectSink

RINGS = 64
CAPACITY = 128
DIED = Refusal(RefusalKind.UNAVAILABLE, "Died.", code="engine_died")

SETTINGS = EngineSettings(
    config=EngineConfig(model="synthetic", synthetic_step_ms=1, kv_cache_mib=1),
    slow_reader_timeout=60,
    num_rings=64,
    ring_capacity=64,
)
"""Of an engine process that is ready soon."""

_PATIENCE = 20.0  # seconds after which a test that waits fails


class Engine:
    """Both ends of an arena: the client under test, the producer, and what was sent on the control channel.

    Attributes:
        client: its options are `options`.
        producer: of the arena.
        arena: RINGS rings of CAPACITY records.
        sent: records of the control channel.
        given_up: one entry per call of `give_up`.
    """

    def __init__(self, stack: contextlib.ExitStack, **options: Any) -> None:
        self.arena = Arena.create(num_rings=RINGS, ring_capacity=CAPACITY, epoch=1)
        stack.callback(self.arena.close)
        stack.callback(self.arena.unlink)
        doorbell = create_doorbell()
        stack.callback(os.close, doorbell)
        consumer = Consumer(self.arena, doorbell)
        stack.callback(consumer.close)
        self.producer = Producer(self.arena, doorbell)
        stack.callback(self.producer.close)
        self.sent: list[ToEngine] = []
        self.given_up: list[bool] = []
        self.client = EngineClient(
            consumer, RINGS, self.sent.append, give_up=lambda: self.given_up.append(True), **options
        )
        self.client.start(doorbell)
        stack.callback(self.client.stop)

    def submit(
        self, sink: RecordingSink | DirectTarget | None = None, requester: Requester = ANYONE
    ) -> tuple[SequenceHandle, int, Any]:
        """A request that the engine has taken; its stream, its ring and its sink."""
        sink = sink or RecordingSink()
        choice = Choice(SamplingParams(max_tokens=5), sink)
        [stream] = self.client.submit_all("r", [1, 2, 3], [choice], received_ns=9, requester=requester)
        submitted = self.sent.pop()
        assert isinstance(submitted, Submit)
        self.producer.open(submitted.ring, submitted.generation)
        return stream, submitted.ring, sink

    def commit(self, tokens: Sequence[tuple[int, int]], finished: Sequence[tuple[int, int]] = ()) -> int:
        """One step: [(ring, token), ...] and [(ring, finish), ...]; the logprob of token t is -t."""
        rings, token_ids = (np.array([entry[i] for entry in tokens], np.uint32) for i in (0, 1))
        ended = np.array([ring for ring, _ in finished], np.uint32)
        reasons = np.array([reason for _, reason in finished], np.uint32)
        return self.producer.commit(rings, token_ids, -token_ids.astype(np.float32), ended, reasons)

    def report(self, waiting: int) -> None:
        """What the engine reports of its queue after a step."""
        self.producer.report(
            1000, sequences_running=0, sequences_waiting=waiting, kv_blocks=1, kv_blocks_used=0, preemptions=0,
            prompt_tokens=0, cached_prompt_tokens=0,
        )  # fmt: skip


@contextlib.contextmanager
def running_engine(**options: Any) -> Iterator[Engine]:
    """An engine for the length of a block, inside a running event loop. The options are the client's."""
    with contextlib.ExitStack() as stack:
        yield Engine(stack, **options)


def direct_target(ours: socket.socket, sink: RecordingDirectSink) -> DirectTarget:
    """A target that writes its text to this socket: <"a"> while more may come, and <"b">] at a stop."""
    frame = b"<" + Slot.TEXT + b">"
    last = LastFrames(frame + b"]", frame + b"]", b"]", b"]")
    template = FrameTemplate(frame, frame, last, last, last, b".")
    outlet = Outlet(ours.fileno(), Vocabulary([b"a", b"b"]), template, strip=False, prompt_tokens=1, stop_token_ids=[])
    return DirectTarget(sink, outlet)


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until the condition holds."""
    async with asyncio.timeout(_PATIENCE):
        while not condition():  # noqa: ASYNC110 - most conditions are on the shared memory
            await asyncio.sleep(0)


def child_engines() -> list[psutil.Process]:
    """The engine processes that this one has started and that have not ended."""
    return [child for child in psutil.Process().children() if _is_engine(child)]


def _is_engine(process: psutil.Process) -> bool:
    try:
        return "rbee.engine" in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
