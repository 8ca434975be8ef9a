"""Stand-ins, written by hand, for what a test cannot have or cannot look into."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rbee.messages import SIDE_RECORD, FinishReason, Submit, decode_to_engine, encode
from rbee.server.link.engine_client import EngineClient
from rbee.transport import Arena, Consumer, Producer, create_doorbell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Send

    from rbee.messages import Ready, ToEngine
    from rbee.server.link.sinks import TokenBatch


class RecordingWriter:
    """A Writer without a socket: keeps what is written; the response's head and end go to ASGI's `send`, if given."""

    descriptor: int | None = None

    def __init__(self, send: Send | None = None) -> None:
        self.send = send
        self.written: list[bytes] = []
        self.paused = False
        self.closed = False
        self.listener: object = None
        self.aborted = False

    async def start(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Send the head."""
        if self.send is not None:
            await self.send({"type": "http.response.start", "status": 200, "headers": list(headers)})

    async def finish(self) -> None:
        """Send the end."""
        if self.send is not None:
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    def write_rest(self, data: bytes) -> None:
        """Keep it as it is."""
        self.written.append(data)

    def write(self, frames: bytes) -> None:
        """Keep one write."""
        assert frames, "an empty chunk would end the response"
        self.written.append(frames)

    def open(self, listener: object, *, direct: bool = False) -> None:
        """Keep the listener."""
        assert not direct, "there is no socket"
        self.listener = listener

    def close(self) -> None:
        """Forget the listener."""
        self.listener = None

    def abort(self) -> None:
        """Note it."""
        self.aborted = True


class RecordingSequence:
    """A SequenceHandle without an engine: keeps what its owner asked for."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def cancel(self, reason: FinishReason = FinishReason.ABORT) -> None:
        """Note it."""
        self.calls.append("cancel" if reason == FinishReason.ABORT else f"cancel: {reason.name.lower()}")

    def pause(self) -> None:
        """Note it."""
        self.calls.append("pause")

    def resume(self) -> None:
        """Note it."""
        self.calls.append("resume")

    def orphan(self) -> None:
        """Note it."""
        self.calls.append("orphan")

    def adopt(self) -> None:
        """Note it."""
        self.calls.append("adopt")


class RecordingWatch:
    """A ReplyWatch without a timer: keeps what it would check, for a test that checks itself.

    Attributes:
        open: what has been added and not discarded.
    """

    def __init__(self) -> None:
        self.open: set[object] = set()

    def add(self, stream: object) -> None:
        """Keep it."""
        self.open.add(stream)

    def discard(self, stream: object) -> None:
        """Forget it."""
        self.open.discard(stream)


class RecordingSink:
    """A TokenSink that keeps what it is given, and fails on demand."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.commit_ns: list[int] = []
        self.cached_tokens: int | None = None  # said with the end
        self.ends: list[Any] = []  # the FinishReason or the Refusal

    def deliver(self, batch: TokenBatch) -> int:
        """Keep the tokens, and the reason if it is one."""
        if self.broken:
            raise RuntimeError("this sink is broken")
        self.token_ids += batch.token_ids
        self.logprobs += batch.logprobs
        self.commit_ns += batch.commit_ns
        if batch.reason:
            self.ends.append(batch.reason)
            self.cached_tokens = batch.cached_tokens
        return batch.reason

    def fail(self, error: Exception) -> None:
        """Keep the error."""
        self.ends.append(error)


class RecordingDirectSink:
    """A DirectSink that keeps what it hears."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def on_blocked(self, rest: bytes) -> None:
        """Note it."""
        self.calls.append(("blocked", rest))

    def on_broken(self) -> None:
        """Note it."""
        self.calls.append(("broken",))

    def on_finish(self, reason: int, cached_tokens: int) -> None:
        """Note it."""
        self.calls.append(("finish", reason, cached_tokens))

    def fail(self, error: Exception) -> None:
        """Note it."""
        self.calls.append(("fail", error))


class RecordingEngine:
    """A Supervisor with an engine in this process: it keeps every Submit, and ends each in one step.

    Everything of the server is real, the arena included; it has to be entered inside a running event loop.

    Attributes:
        submitted: the records, as they come out of the control channel's codec.
        client: as a Supervisor has it.
        num_rings: as a Supervisor has it.
        ring_capacity: as a Supervisor has it.
        engine_memory: as a Supervisor has it.
    """

    num_rings = 64
    ring_capacity = 1024
    engine_memory = None

    def __init__(self, ready: Ready, token_id: int | None, reason: FinishReason = FinishReason.LENGTH) -> None:
        """Describe the engine, what it always says (None: nothing), and how that ends."""
        self.submitted: list[Submit] = []
        self._ready = ready
        self._token_id = token_id
        self._reason = reason
        self._resources = contextlib.ExitStack()

    def check_ready(self) -> Ready:
        """It is."""
        return self._ready

    @property
    def ready(self) -> Ready:
        """As a Supervisor has it."""
        return self._ready

    def __enter__(self) -> Self:
        arena = Arena.create(num_rings=self.num_rings, ring_capacity=self.ring_capacity, epoch=1)
        arena.unlink()
        self._resources.callback(arena.close)
        doorbell = create_doorbell()
        self._resources.callback(os.close, doorbell)
        consumer = Consumer(arena, doorbell)
        self._resources.callback(consumer.close)
        self._producer = Producer(arena, doorbell)
        self._resources.callback(self._producer.close)
        self.client = EngineClient(consumer, self.num_rings, self._obey, give_up=self._resources.close)
        loop = asyncio.get_running_loop()
        loop.add_reader(doorbell, self.client.on_wake)
        self._resources.callback(loop.remove_reader, doorbell)
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def _obey(self, record: ToEngine) -> None:
        """Run a request in one step: the side records of its prompt, at most one token with its own, and its end."""
        submit = decode_to_engine(encode(record))
        if not isinstance(submit, Submit):
            return
        self.submitted.append(submit)
        tokens = [SIDE_RECORD] if submit.report_cached else []  # nothing was cached
        if submit.sampling.num_prompt_logprobs is not None:
            tokens += [SIDE_RECORD | 1] * ((len(submit.prompt) // 4 - 1) * (1 + submit.sampling.num_prompt_logprobs))
        if self._token_id is not None:
            tokens += [self._token_id, *[SIDE_RECORD | 1] * (submit.sampling.num_logprobs or 0)]
        self._producer.open(submit.ring, submit.generation)
        self._producer.commit(
            np.full(len(tokens), submit.ring, np.uint32),
            np.array(tokens, np.uint32),
            np.full(len(tokens), -1, np.float32),
            np.array([submit.ring], np.uint32),
            np.array([self._reason], np.uint32),
        )
