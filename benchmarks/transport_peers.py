"""The contenders of `bench_transport.py`: rbee's transport, what other servers use instead, and the floor.

Owns how each one brings a step's tokens from the producer process to the consumer process. Does not know cadences,
clocks or figures; that is `transport_run.py`, which treats all contenders alike.

Every contender gets the same input, what a sampler has after a step: an array of token ids, one per stream in a fixed
order. What it does with it until the ids are in the streams' Python lists of the other process is its cost: building
messages, encoding, waking, decoding, telling streams apart. Nothing is converted beforehand, except what a server has
at hand for every step (the list of stream numbers, the array of rings, the request ids). Each contender also hands over
when the step was committed. rbee carries a logprob per token besides, which the others are spared.

Where a contender offers a choice, it gets the one that is better for it:

* `rbee`: the rings of `rbee.transport`, as long as those of `rbee serve`, and their one eventfd. The engine asks every
  ring for its space before every step, because each may have its own slow reader; here the rings are asked when the
  space known of is used up.
* `mp_queue`: one `put` per step. The queue offers no descriptor to wait on (its pipe is private), so a thread waits in
  `get` and hands each step to the loop with `call_soon_threadsafe`, as servers do that use one. Pickles, and has a
  thread of its own in the producer.
* `mp_pipe`: one `Connection.send_bytes` per step of a msgspec (msgpack) record of two flat lists. `send` would pickle
  the same lists; bytes leave the choice of the encoding, and this is the faster one. The loop waits on its descriptor.
* `zmq`: PUSH/PULL over ipc, one msgpack message per step with a list of per-request outputs in the shape of vLLM V1's
  `EngineCoreOutputs`, `zmq.asyncio` in the consumer on the same loop. Better off than in vLLM: sent from the stepping
  thread (no queue and thread in between), and no second task behind the decoding one.
* `eventfd_each`: an array in shared memory, and one eventfd per stream, written for each token and waited on
  by the loop: what one doorbell avoids.
* `faster_fifo`: one `put` per step, `get_many` in a thread like `mp_queue`, because it offers no descriptor either.
* `floor`: no tokens; one eventfd is written, the loop wakes.

No contender may drop anything: full means that `publish` waits. All that can be bounded holds `DEPTH` steps.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import pickle
import threading
import uuid
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import msgspec
import numpy as np

from rbee.config import ServerConfig
from rbee.transport import Arena, Consumer, Producer, create_doorbell

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

DEPTH = 64  # steps that may be under way; a power of two

# A step as the contenders with flat messages send it: commit time, stream numbers, their tokens.
Step = tuple[int, list[int], list[int]]


class Inbox(Protocol):
    """Where a contender's consumer puts tokens: a list per stream."""

    tokens: list[list[int]]

    def landed(self, count: int, committed_ns: int | list[int], /) -> None:
        """A batch of `count` tokens has just been put into `tokens`."""


class Contender(ABC):
    """One way between the processes. Made in the parent, which forks producer and consumer from itself."""

    name: ClassVar[str]
    package: ClassVar[str | None] = None  # what must be installed beyond the `dev` extra
    carries_tokens: ClassVar[bool] = True

    def __init__(self, streams: int, folder: Path) -> None:
        """Make what both processes inherit.

        Args:
            streams: tokens in every step.
            folder: an empty one, for sockets.
        """
        self.streams = streams
        self.folder = folder

    @abstractmethod
    def open_producer(self) -> None:
        """In the producer process, before the first step."""

    @abstractmethod
    def publish(self, committed_ns: int, tokens: NDArray[np.uint32]) -> int:
        """Send a step, waiting while there is no room for it; return the commit time that the consumer will receive.

        Args:
            committed_ns: the time to send along, unless the transport stamps steps itself.
            tokens: [streams] ids.
        """

    @abstractmethod
    def open_consumer(self, loop: asyncio.AbstractEventLoop, inbox: Inbox) -> None:
        """In the consumer process: have `loop` put all that arrives into `inbox`."""

    def close(self) -> None:  # noqa: B027 - not everyone has something to close
        """In the parent, when both processes are gone."""


class _Rbee(Contender):
    """`rbee.transport`."""

    name = "rbee"

    def __init__(self, streams: int, folder: Path) -> None:
        super().__init__(streams, folder)
        num_rings = (streams + 63) // 64 * 64
        self._created = Arena.create(num_rings=num_rings, ring_capacity=ServerConfig().ring_capacity, epoch=1)
        try:
            self._attached = Arena.attach(self._created.name)
        finally:
            self._created.unlink()
        self._doorbell = create_doorbell()
        self._wake = os.eventfd(0)  # stands in for the Wake record of the control socket
        self._consumer = Consumer(self._created, self._doorbell)
        self._assigned = [assigned for _ in range(streams) if (assigned := self._consumer.assign())]
        self._space = DEPTH

    def open_producer(self) -> None:
        self._producer = Producer(self._attached, self._doorbell)
        for ring, generation in self._assigned:
            self._producer.open(ring, generation)
        self._rings = np.array([ring for ring, _ in self._assigned], np.uint32)
        self._logprobs = np.zeros(self.streams, np.float32)
        self._no_rings = np.empty(0, np.uint32)
        self._no_reasons = np.empty(0, np.uint32)

    def publish(self, committed_ns: int, tokens: NDArray[np.uint32]) -> int:  # noqa: ARG002 - commit() stamps
        if self._space == 0:
            self._wait_for_space()
        self._space -= 1
        return self._producer.commit(self._rings, tokens, self._logprobs, self._no_rings, self._no_reasons)

    def _wait_for_space(self) -> None:
        while not self._least_space():
            self._producer.arm_wait()
            if not self._least_space():
                os.eventfd_read(self._wake)

    def _least_space(self) -> int:
        unused = self._attached.ring_capacity - DEPTH
        self._space = max(0, min(self._producer.free_space(ring) for ring, _ in self._assigned) - unused)
        return self._space

    def open_consumer(self, loop: asyncio.AbstractEventLoop, inbox: Inbox) -> None:
        consumer, wake = self._consumer, self._wake
        held: list[list[int]] = [[]] * self._created.num_rings
        for (ring, _), tokens_of_stream in zip(self._assigned, inbox.tokens, strict=True):
            held[ring] = tokens_of_stream

        def on_wake() -> None:
            drained = consumer.drain()
            rings, tokens = drained.rings, drained.tokens
            if len(rings) == len(tokens):  # one each, as after every single step
                for ring, token in zip(rings, tokens, strict=True):
                    held[ring].append(token)
            else:
                start = 0
                for ring, end in zip(rings, drained.ends, strict=True):
                    held[ring] += tokens[start:end]
                    start = end
            inbox.landed(len(tokens), drained.commit_ns)
            if drained.needs_wake:
                os.eventfd_write(wake, 1)
            if drained.more:
                loop.call_soon(on_wake)

        loop.add_reader(self._doorbell, on_wake)

    def close(self) -> None:
        self._consumer.close()
        self._attached.close()
        self._created.close()
        os.close(self._doorbell)
        os.close(self._wake)


class _MpQueue(Contender):
    """`multiprocessing.Queue`."""

    name = "mp_queue"

    def __init__(self, streams: int, folder: Path) -> None:
        super().__init__(streams, folder)
        self._queue: multiprocessing.Queue[Step] = multiprocessing.get_context("fork").Queue(DEPTH)

    def open_producer(self) -> None:
        self._streams = list(range(self.streams))

    def publish(self, committed_ns: int, tokens: NDArray[np.uint32]) -> int:
        self._queue.put((committed_ns, self._streams, tokens.tolist()))
        return committed_ns

    def open_consumer(self, loop: asyncio.AbstractEventLoop, inbox: Inbox) -> None:
        _read_in_thread(loop, lambda: [self._queue.get()], inbox)

    def close(self) -> None:
        self._queue.close()


class _MpPipe(Contender):
    """`multiprocessing.Pipe`. How many steps fit into it is the kernel's choice (64 KiB)."""

    name = "mp_pipe"

    def __init__(self, streams: int, folder: Path) -> None:
        super().__init__(streams, folder)
        self._receiver, self._sender = multiprocessing.Pipe(duplex=False)

    def open_producer(self) -> None:
        self._streams = list(range(self.streams))
        self._encode = msgspec.msgpack.Encoder().encode

    def publish(self, committed_ns: int, tokens: NDArray[np.uint32]) -> int:
        self._sender.send_bytes(self._encode((committed_ns, self._streams, tokens.tolist())))
        return committed_ns

    def open_consumer(self, loop: asyncio.AbstractEventLoop, inbox: Inbox) -> None:
        receiver = self._receiver
        decode = msgspec.msgpack.Decoder(Step).decode
        loop.add_reader(receiver.fileno(), lambda: _hold(inbox, decode(receiver.recv_bytes())))
        # The loop has made it non-blocking, but a Connection cannot resume a message that has come in part.
        os.set_blocking(receiver.fileno(), True)

    def close(self) -> None:
        self._receiver.close()
        self._sender.close()


class RequestOutput(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """What one request gets in one step, with the fields of vLLM's `EngineCoreOutput` that come first."""

    request_id: str
    new_token_ids: list[int]
    new_logprobs: Any = None
    new_prompt_logprobs: Any = None
    pooling_output: Any = None
    finish_reason: int | None = None
    stop_reason: int | str | None = None


class StepOutputs(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """One step, as vLLM's `EngineCoreOutputs`; only that the timestamp is in ns and an integer, to be exact."""

    engine_index: int = 0
    outputs: list[RequestOutput] = []
    scheduler_stats: Any = None
    timestamp: int = 0


class _Zmq(Contender):
    """ZeroMQ and msgspec."""

    name = "zmq"
    package = "zmq"

    def __init__(self, streams: int, folder: Path) -> None:
        super().__init__(streams, folder)
        self._address = f"ipc://{folder / 'socket'}"
        self._request_ids = [f"cmpl-{uuid.uuid4().hex}-0" for _ in range(streams)]

    def open_producer(self) -> None:
        import zmq  # noqa: PLC0415 - only this contender needs it

        self._socket = zmq.Context().socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, DEPTH)
        self._socket.connect(self._address)
        self._encode = msgspec.msgpack.Encoder().encode

    def publish(self, committed_ns: int, tokens: NDArray[np.uint32]) -> int:
        outputs = [
            RequestOutput(request_id, [token])
            for request_id, token in zip(self._request_ids, tokens.tolist(), strict=True)
        ]
        self._socket.send(self._encode(StepOutputs(outputs=outputs, timestamp=committed_ns)))
        return committed_ns

    def open_consumer(self, loop: asyncio.AbstractEventLoop, inbox: Inbox) -> None:
        import zmq  # noqa: PLC0415 - only this contender needs it
        from zmq.asyncio import Context  # noqa: PLC0415

        socket = Context().socket(zmq.PULL)
        socket.setsockopt(zmq.RCVHWM, DEPTH)
        socket.bind(self._address)
        decode = msgspec.msgpack.Decoder(StepOutputs).decode
        held = dict(zip(self._request_ids, inbox.tokens, strict=True))

        async def receive() -> None:
            while True:
                frame = await socket.recv(copy=False)
                step = decode(frame.buffer)
                for output in step.outputs:
                    held[output.request_id] += output.new_token_ids
                inbox.landed(len(step.outputs), step.timestamp)

        self._task = loop.create_task(receive())
        self._task.add_done_callback(lambda task: task.result())  # an error reaches the loop's exception handler


class _EventfdEach(Contender):
    """One eventfd per stream beside plain shared memory."""

    name = "eventfd_each"

    def __init__(self, streams: int, folder: Path) -> None:
        super().__init__(streams, folder)
        self._wakes = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(streams)]
        self._room = os.eventfd(0)  # written by the consumer for every DEPTH / 2 tokens that it took from a stream
        self._tokens = memoryview(mmap.mmap(-1, DEPTH * streams * 4)).cast("I")  # [slot][stream]
        self._commits = memoryview(mmap.mmap(-1, DEPTH * 8)).cast("Q")  # [slot]
        self._taken = memoryview(mmap.mmap(-1, streams * 8)).cast("Q")  # [stream] tokens ever
        self._published = 0
        self._space = DEPTH

    def open_producer(self) -> None:
        self._slots = np.frombuffer(self._tokens, np.uint32).reshape(DEPTH, self.streams)
        self._taken_array = np.frombuffer(self._taken, np.uint64)

    def publish(self, committed_ns: int, tokens: NDArray[np.uint32]) -> int:
        while self._space == 0:
            self._space = DEPTH - (self._published - int(self._taken_array.min()))
            if self._space == 0:
                os.eventfd_read(self._room)
        self._space -= 1
        slot = self._published % DEPTH
        self._published += 1
        self._slots[slot] = tokens
        self._commits[slot] = committed_ns
        for wake in self._wakes:
            os.eventfd_write(wake, 1)
        return committed_ns

    def open_consumer(self, loop: asyncio.AbstractEventLoop, inbox: Inbox) -> None:
        shared, commits, taken, room, streams = self._tokens, self._commits, self._taken, self._room, self.streams

        def on_wake(stream: int, wake: int, held: list[int]) -> None:
            first = taken[stream]
            end = first + os.eventfd_read(wake)
            for index in range(first, end):
                slot = index % DEPTH
                held.append(shared[slot * streams + stream])
                inbox.landed(1, commits[slot])
            taken[stream] = end
            if first // (DEPTH // 2) != end // (DEPTH // 2):
                os.eventfd_write(room, 1)

        for stream, (wake, held) in enumerate(zip(self._wakes, inbox.tokens, strict=True)):
            loop.add_reader(wake, on_wake, stream, wake, held)

    def close(self) -> None:
        for wake in self._wakes:
            os.close(wake)
        os.close(self._room)


class _FasterFifo(Contender):
    """The faster-fifo package."""

    name = "faster_fifo"
    package = "faster_fifo"

    _PATIENCE = 60.0  # seconds; put and get raise after it, they cannot wait for ever

    def __init__(self, streams: int, folder: Path) -> None:
        import faster_fifo  # noqa: PLC0415 - only this contender needs it

        super().__init__(streams, folder)
        step = (2**62, list(range(streams)), [2**31] * streams)
        self._queue = faster_fifo.Queue(max_size_bytes=DEPTH * (len(pickle.dumps(step)) + 64), maxsize=DEPTH)

    def open_producer(self) -> None:
        self._streams = list(range(self.streams))

    def publish(self, committed_ns: int, tokens: NDArray[np.uint32]) -> int:
        self._queue.put((committed_ns, self._streams, tokens.tolist()), timeout=self._PATIENCE)
        return committed_ns

    def open_consumer(self, loop: asyncio.AbstractEventLoop, inbox: Inbox) -> None:
        _read_in_thread(loop, lambda: self._queue.get_many(timeout=self._PATIENCE), inbox)


class _Floor(Contender):
    """A bare wake."""

    name = "floor"
    carries_tokens = False

    def __init__(self, streams: int, folder: Path) -> None:
        super().__init__(streams, folder)
        self._doorbell = os.eventfd(0, os.EFD_NONBLOCK)
        self._rung = 0

    def open_producer(self) -> None:
        """There is nothing to open."""

    def publish(self, committed_ns: int, tokens: NDArray[np.uint32]) -> int:  # noqa: ARG002 - nothing is sent
        os.eventfd_write(self._doorbell, 1)
        self._rung += 1
        return self._rung  # what the consumer can know about the step

    def open_consumer(self, loop: asyncio.AbstractEventLoop, inbox: Inbox) -> None:
        def on_wake() -> None:
            for _ in range(os.eventfd_read(self._doorbell)):
                self._rung += 1
                inbox.landed(1, self._rung)

        loop.add_reader(self._doorbell, on_wake)

    def close(self) -> None:
        os.close(self._doorbell)


CONTENDERS: dict[str, type[Contender]] = {
    contender.name: contender for contender in (_Rbee, _MpQueue, _MpPipe, _Zmq, _EventfdEach, _FasterFifo)
}
FLOOR: type[Contender] = _Floor


def _hold(inbox: Inbox, step: Step) -> None:
    committed_ns, streams, tokens = step
    held = inbox.tokens
    for stream, token in zip(streams, tokens, strict=True):
        held[stream].append(token)
    inbox.landed(len(tokens), committed_ns)


def _read_in_thread(loop: asyncio.AbstractEventLoop, get: Callable[[], list[Step]], inbox: Inbox) -> None:
    """Wait in `get` in a thread and have the loop hold what comes; an error of `get` is raised in the loop."""

    def fail(error: BaseException) -> None:
        raise error

    def hold(steps: list[Step]) -> None:
        for step in steps:
            _hold(inbox, step)

    def read() -> None:
        try:
            while True:
                loop.call_soon_threadsafe(hold, get())
        except BaseException as error:  # noqa: BLE001 - raised again in the loop
            loop.call_soon_threadsafe(fail, error)

    threading.Thread(target=read, daemon=True).start()
