"""The engine and the server process of `bench_frames.py`: what is measured.

Owns the ways in which a stream's frames are written, and the two processes' side of a run. What the ways are, and what
is done with the figures: `bench_frames.py`, whose process starts these two and talks to them over a Connection each:

    server -> its address
    engine -> "attached"
    server -> (ring, generation) of each stream, when all have been asked for -> engine, which warms up
    "mark" -> server -> its usage, when the clients have all of the warm-up
    "go" -> engine, which starts the steps that are measured
    "mark" -> server -> its usage, when the clients have everything
    engine -> when it started (as if no pause had followed the warm-up), and the stamp of every step
    "finish" -> engine, which ends all streams
    "stop" -> server, engine
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import select
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import uvicorn
import uvloop
from starlette.responses import StreamingResponse

from rbee.messages import FinishReason, Submit, ToEngine
from rbee.models import synthetic
from rbee.sampling_params import SamplingParams
from rbee.server.http import sse
from rbee.server.http.listener import listen
from rbee.server.http.protocol import StreamProtocol
from rbee.server.http.writer import writer_of
from rbee.server.link.engine_client import EngineClient
from rbee.server.link.sequences import Choice, DirectTarget
from rbee.server.protocols.openai.dialect import ChatDialect
from rbee.server.protocols.openai.schemas import StreamOptions
from rbee.server.streams.choices import ChoiceSink
from rbee.server.streams.direct_reply import DirectReply, make_outlet
from rbee.server.streams.exchange import write_stream
from rbee.server.streams.generation import Generation
from rbee.server.streams.live import ReplyWatch
from rbee.server.streams.pieces import Piece
from rbee.server.streams.replies import StreamedReply
from rbee.server.text.token_text import TokenText
from rbee.server.text.tokenizer import TextCodec
from rbee.transport import Arena, Consumer, Producer

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator
    from multiprocessing.connection import Connection

    from starlette.types import Receive, Scope, Send

    from rbee.server.http.writer import Writer
    from rbee.server.link.sequences import SequenceHandle

WAYS = ("streaming_response", "asgi_send", "protocol", "native", "floor")
WARMUP_STEPS = 50
RING_CAPACITY = 1024

_OPTIONS = StreamOptions(include_timing=True)
_LONG = 600.0  # seconds; nothing here waits for a client


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run: `steps` are those after the warm-up, `cpus` the cores of engine and client, and of the server."""

    way: str
    streams: int
    steps: int
    step_ns: int
    cpus: tuple[int, int] | None
    arena: str = ""

    @property
    def tokens(self) -> int:
        """Per stream, the warm-up's included."""
        return WARMUP_STEPS + self.steps


class Usage(NamedTuple):
    """What the server has used since its start."""

    cpu_ns: int
    switches: int
    drains: int

    @classmethod
    def now(cls, drains: int) -> Usage:
        """This process's, which has drained so often."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(time.process_time_ns(), used.ru_nvcsw + used.ru_nivcsw, drains)


def make_generation(stream: int) -> Generation:
    """The request of a stream's client."""
    return Generation(received_ns=0, prompt=[stream], sampling=SamplingParams(max_tokens=RING_CAPACITY), stops=[])


def make_dialect(stream: int, codec: TextCodec) -> ChatDialect:
    """A stream's frames as a chat completion has them; of the same size in all streams."""
    return ChatDialect("synthetic", make_generation(stream), _OPTIONS, codec.token_bytes)


def run_engine(plan: Plan, doorbell: int, control: Connection) -> None:
    """Publish a token per stream and step; end the streams when the client has them all."""
    with contextlib.ExitStack() as stack:
        arena = Arena.attach(plan.arena)
        stack.callback(arena.close)
        producer = Producer(arena, doorbell)
        stack.callback(producer.close)
        control.send("attached")
        requests = control.recv()  # (ring, generation) of each stream
        for ring, generation in requests:
            producer.open(ring, generation)
        rings = np.array([ring for ring, _ in requests], np.uint32)
        tokens = np.array([synthetic.expected_tokens([n], plan.tokens) for n in range(plan.streams)], np.uint32)
        table = np.ascontiguousarray(tokens.T)
        logprobs = np.zeros(plan.streams, np.float32)
        no_rings, no_reasons = np.empty(0, np.uint32), np.empty(0, np.uint32)
        stamps = []
        start_ns = time.monotonic_ns()
        for step in range(plan.tokens):
            if step == WARMUP_STEPS:
                control.recv()
                start_ns = time.monotonic_ns() - step * plan.step_ns
            ahead_ns = start_ns + (step + 1) * plan.step_ns - time.monotonic_ns()
            if ahead_ns > 0:
                time.sleep(ahead_ns / 1e9)
            if plan.way == "floor":
                stamps.append(time.monotonic_ns())
                os.eventfd_write(doorbell, 1)
            else:
                stamps.append(producer.commit(rings, table[step], logprobs, no_rings, no_reasons))
        control.send((start_ns, stamps))
        control.recv()
        if plan.way != "floor":
            reasons = np.full(plan.streams, FinishReason.LENGTH, np.uint32)
            producer.commit(no_rings, no_rings, logprobs[:0], rings, reasons)
        control.recv()


# ---- the server -----------------------------------------------------------------------------------------------


class _QueueWriter:
    """In place of a SocketWriter: what a reply writes goes into a queue, for the request's task to send."""

    def __init__(self, queue: asyncio.Queue[bytes]) -> None:
        self.write = queue.put_nowait


class _App:
    """The ASGI application: the request for /N is answered with stream N, written in one way."""

    def __init__(self, way: str, client: EngineClient) -> None:
        self._answer = {
            "streaming_response": self._streaming_response,
            "asgi_send": self._asgi_send,
            "protocol": self._protocol,
            "native": self._native,
        }[way]
        self._client = client
        self._codec = TextCodec(synthetic.tokenizer())
        self._watch = ReplyWatch(period=5.0, slow_reader_timeout=_LONG)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(int(scope["path"][1:]), scope, receive, send)

    async def _streaming_response(self, stream: int, scope: Scope, receive: Receive, send: Send) -> None:
        queue = self._queue(stream)

        async def body() -> AsyncIterator[bytes]:
            while frames := await queue.get():
                yield frames

        headers = {name.decode(): value.decode() for name, value in sse.HEADERS}
        await StreamingResponse(body(), headers=headers)(scope, receive, send)

    async def _asgi_send(self, stream: int, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        queue = self._queue(stream)
        await send({"type": "http.response.start", "status": 200, "headers": sse.HEADERS})
        while frames := await queue.get():
            await send({"type": "http.response.body", "body": frames, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _protocol(self, stream: int, scope: Scope, receive: Receive, send: Send) -> None:
        writer = writer_of(scope, receive, send)
        await write_stream(self._streamed(stream, writer), writer, self._watch)

    async def _native(self, stream: int, scope: Scope, receive: Receive, send: Send) -> None:
        writer = writer_of(scope, receive, send)
        dialect = make_dialect(stream, self._codec)
        outlet = make_outlet(writer, self._codec.table, dialect, make_generation(stream))
        assert outlet is not None  # it is, without a table or with TLS
        reply = DirectReply(writer, dialect, outlet)
        reply.sequences = self._submit(stream, reply)
        await write_stream(reply, writer, self._watch)

    def _queue(self, stream: int) -> asyncio.Queue[bytes]:
        """Where the frames of this stream will come; an empty one is the end."""
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        reply = self._streamed(stream, cast("Writer", _QueueWriter(queue)))
        reply.done.add_done_callback(lambda _: queue.put_nowait(b""))
        return queue

    def _streamed(self, stream: int, writer: Writer) -> StreamedReply:
        text = TokenText(self._codec.detokenizer(), None, ())
        reply = StreamedReply(writer, make_dialect(stream, self._codec))
        sink = ChoiceSink(0, reply, text)
        sink.sequence = reply.sequences = self._submit(stream, sink)
        return reply

    def _submit(self, stream: int, sink: ChoiceSink | DirectReply) -> SequenceHandle:
        target = DirectTarget(sink, sink.outlet) if isinstance(sink, DirectReply) else sink
        generation = make_generation(stream)
        choice = Choice(generation.sampling, target, timed=True)
        [submitted] = self._client.submit_all(str(stream), generation.prompt, [choice], received_ns=time.monotonic_ns())
        return submitted


def run_server(plan: Plan, doorbell: int, control: Connection) -> None:
    """Serve until a stop command; send the address, the streams that were requested, and what their frames cost."""
    if plan.way == "floor":
        _serve_floor(plan, doorbell, control)
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(plan, doorbell, control))


async def _serve(plan: Plan, doorbell: int, control: Connection) -> None:
    loop = asyncio.get_running_loop()
    submitted: dict[int, tuple[int, int]] = {}

    def to_engine(record: ToEngine) -> None:
        assert isinstance(record, Submit)  # this engine never sleeps between steps, so nothing wakes it
        submitted[int(record.request_id)] = record.ring, record.generation
        if len(submitted) == plan.streams:
            control.send([submitted[stream] for stream in range(plan.streams)])

    def on_control() -> None:
        if control.recv() == "stop":
            server.should_exit = True
        else:
            control.send(Usage.now(consumer.counters()["drains"]))

    with contextlib.ExitStack() as stack:
        arena = Arena.attach(plan.arena)
        stack.callback(arena.close)
        consumer = Consumer(arena, doorbell)
        stack.callback(consumer.close)
        client = EngineClient(consumer, arena.num_rings, to_engine, give_up=sys.exit)
        http = StreamProtocol if plan.way in {"protocol", "native"} else "httptools"
        server = uvicorn.Server(
            uvicorn.Config(
                _App(plan.way, client),
                http=cast("Any", http),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
            )
        )
        sock = stack.enter_context(listen("127.0.0.1", 0))
        client.start(doorbell)
        stack.callback(client.stop)
        loop.add_reader(control.fileno(), on_control)
        stack.callback(loop.remove_reader, control.fileno())
        gc.collect()
        gc.freeze()  # as the server does when it is ready
        stack.callback(gc.unfreeze)
        control.send(sock.getsockname())
        await server.serve(sockets=[sock])


def _serve_floor(plan: Plan, doorbell: int, control: Connection) -> None:
    """As `_serve`, but nothing is done for a frame except sending it; rung only as often as there are tokens."""
    with listen("127.0.0.1", 0) as listener:
        listener.setblocking(True)
        control.send(listener.getsockname())
        sockets: dict[int, socket.socket] = {}
        while len(sockets) < plan.streams:
            sock, _ = listener.accept()
            sockets[int(sock.recv(4096).split()[1][1:])] = sock
    for sock in sockets.values():
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        sock.setblocking(False)
    dialect = make_dialect(0, TextCodec(synthetic.tokenizer()))
    now_ns = time.monotonic_ns()
    # The first one has the role besides; these are later ones.
    chunks = [_chunk(dialect.piece(0, Piece(chr(token), 1, now_ns, []), number=1)) for token in range(128)]
    tokens = zip(*(synthetic.expected_tokens([stream], plan.tokens) for stream in range(plan.streams)), strict=True)
    steps = [[chunks[token] for token in step] for step in tokens]
    in_order = [sockets[stream] for stream in range(plan.streams)]
    control.send([(stream, 1) for stream in range(plan.streams)])
    step = wakes = marks = 0
    with select.epoll() as poller:
        poller.register(doorbell, select.EPOLLIN)
        poller.register(control, select.EPOLLIN)
        while marks < 2:
            for fd, _ in poller.poll():
                if fd == doorbell:
                    wakes += 1
                    for _ in range(os.eventfd_read(doorbell)):
                        for sock, chunk in zip(in_order, steps[step], strict=True):
                            sock.send(chunk)
                        step += 1
                else:
                    control.recv()
                    control.send(Usage.now(wakes))
                    marks += 1
    end = dialect.end(0, Piece("", plan.tokens, now_ns, []), number=1, reason=FinishReason.LENGTH) + sse.DONE
    for sock in in_order:
        sock.sendall(_chunk(end) + b"0\r\n\r\n")
        sock.close()
    control.recv()


def _chunk(frames: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(frames), frames)
