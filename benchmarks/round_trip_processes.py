"""The server and the engine's end of the control channel of `bench_round_trip.py`: what is measured.

Owns the two processes. Of the server everything is real: the HTTP server on its socket, the application, the engine's
client, the control channel, the arena. Of the engine there is only what answers: it notes when a record has arrived,
and ends each sequence in one step. What is asked, and what is done with the figures: `bench_round_trip.py`.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import uvloop

from rbee.child import die_with_parent
from rbee.config import ServerConfig
from rbee.messages import FinishReason, Ready, Submit, decode_to_engine, encode
from rbee.sampling_params import SamplingParams
from rbee.server.assembly import assemble, make_door
from rbee.server.garbage import collected_when_idle
from rbee.server.http.listener import HttpServer, listen
from rbee.server.link.engine_client import EngineClient
from rbee.server.link.sequences import Choice
from rbee.server.process import SWITCH_INTERVAL
from rbee.server.protocols.fields import FieldReader, decode_object
from rbee.server.protocols.generation_reader import GenerationReader
from rbee.server.protocols.openai.dialect import ChatDialect
from rbee.server.protocols.openai.reader import output_limit, read_chat
from rbee.server.protocols.openai.schemas import StreamOptions
from rbee.server.text import served_model
from rbee.transport import Arena, Consumer, Producer, create_doorbell
from rbee.transport.control import ControlChannel, frame

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from pathlib import Path

    from rbee.messages import ToEngine
    from rbee.server.errors import Refusal
    from rbee.server.link.sinks import TokenBatch
    from rbee.server.text.served_model import ServedModel

MODEL = "model"  # what requests call it
BEAT_NS = 200_000  # of the `Pulse`
FLOOR_END = b"\0"  # behind a request to the floor
PARTS = ("parse", "validate", "template", "tokenize", "generation", "submit")
_RINGS = 64
_LONG = 3600  # seconds
_MAX_MODEL_LEN = 8192  # the default model's
_FLOOR = "floor"  # the request_id of its records
_TOKEN = 100  # what the engine says: a token with text


class Link(NamedTuple):
    """What the two processes share."""

    arena: Arena
    doorbell: int
    server: socket.socket  # the ends of the control channel
    engine: socket.socket

    @classmethod
    def over(cls, server: socket.socket, engine: socket.socket) -> Link:
        """A fresh arena beside this pair of sockets."""
        arena = Arena.create(num_rings=_RINGS, ring_capacity=1024, epoch=1, named=False)
        return cls(arena, create_doorbell(), server, engine)


class Noted(NamedTuple):
    """A Submit as the engine's end of the control channel has it. Times are CLOCK_MONOTONIC in ns."""

    number: int  # of the request: its seed
    received_ns: int  # when the server had the whole request
    submitted_ns: int  # when its record had been read from the control channel
    prompt_tokens: int


class Beat(NamedTuple):
    """When the event loop has looked at the timer, CLOCK_MONOTONIC; several beats that were due are one. All in ns."""

    moment: int
    late: int  # since the first of them was due
    cpu: int  # time of the loop's thread since the one before


# ---- the engine's end ------------------------------------------------------------------------------------------


def note_submissions(link: Link, notes: Connection, parent: int) -> None:
    """Note every Submit in `notes`, and end its sequence with one token, until the channel is closed."""
    if not _is_child_of(parent):
        return
    link.server.close()
    producer = Producer(link.arena, link.doorbell)
    channel = ControlChannel(link.engine)
    token, logprob = np.array([_TOKEN], np.uint32), np.array([-1], np.float32)
    reason = np.array([FinishReason.LENGTH], np.uint32)
    with contextlib.closing(producer), contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            select.select([channel], [], [])
            payloads = channel.receive()
            now = time.monotonic_ns()
            for payload in payloads:
                record = decode_to_engine(payload)
                if not isinstance(record, Submit):
                    continue
                assert record.sampling.seed is not None
                notes.send(Noted(record.sampling.seed, record.received_ns, now, len(record.prompt) // 4))
                if record.request_id != _FLOOR:
                    ring = np.array([record.ring], np.uint32)
                    producer.open(record.ring, record.generation)
                    producer.commit(ring, token, logprob, ring, reason)


def _is_child_of(parent: int) -> bool:
    """End with the parent, and leave Ctrl-C to it; False if it has ended already."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return die_with_parent(parent)


# ---- the server ------------------------------------------------------------------------------------------------


def serve(link: Link, control: Connection, folder: Path, parent: int) -> None:
    """Serve the model of `folder` and obey `control` until "stop": see `_Commands`. Sends two addresses at first."""
    if not _is_child_of(parent):
        return
    link.engine.close()
    sys.setswitchinterval(SWITCH_INTERVAL)
    model = served_model.load(MODEL, folder)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(link, control, model))


class _ReadyEngine:
    """What the application needs of a Supervisor, of an engine that is ready."""

    num_rings = _RINGS

    def __init__(self, client: EngineClient, ready: Ready, ring_capacity: int) -> None:
        self.client = client
        self.ready = ready
        self.ring_capacity = ring_capacity

    def check_ready(self) -> Ready:
        """It is."""
        return self.ready


async def _serve(link: Link, control: Connection, model: ServedModel) -> None:
    loop = asyncio.get_running_loop()
    ready = Ready(
        runner="none", device="cpu", dtype="float32", max_model_len=_MAX_MODEL_LEN, vocab_size=model.codec.size,
        num_blocks=1, block_size=16, load_seconds=0.0,
    )  # fmt: skip
    config = ServerConfig(max_requests=_RINGS, log_requests=False)
    with contextlib.ExitStack() as stack:
        consumer = Consumer(link.arena, link.doorbell)
        stack.callback(consumer.close)
        link.server.setblocking(False)
        transport, _ = await loop.create_unix_connection(asyncio.Protocol, sock=link.server)
        stack.callback(transport.close)

        def send(record: ToEngine) -> None:
            transport.write(frame(encode(record)))

        client = EngineClient(consumer, _RINGS, send, give_up=sys.exit)
        client.start(link.doorbell)
        stack.callback(client.stop)
        engine = _ReadyEngine(client, ready, link.arena.ring_capacity)
        app = assemble(config, model, engine, make_door(config))  # type: ignore[arg-type] # no process behind it
        http = HttpServer(app, head_timeout=_LONG, keep_alive_timeout=_LONG)  # some connections have to wait
        sock = stack.enter_context(listen("127.0.0.1", 0))
        floor = await loop.create_server(lambda: _Floor(send), "127.0.0.1", 0)
        stack.callback(floor.close)
        commands = _Commands(control, http, lambda bodies: _time_parts(bodies, model, engine))
        loop.add_reader(control.fileno(), commands.obey)
        stack.callback(loop.remove_reader, control.fileno())
        os.set_blocking(control.fileno(), True)  # again: a message may come in parts
        stack.enter_context(collected_when_idle(lambda: client.rings_in_use == 0))
        control.send((sock.getsockname(), floor.sockets[0].getsockname()))
        await http.serve(sockets=[sock])


class _Floor(asyncio.Protocol):
    """The least that the way takes: bytes that come from one socket lead to as many as a record has on the other."""

    def __init__(self, send: Callable[[ToEngine], None]) -> None:
        self._send = send
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(FLOOR_END):
            number, tokens = self._received.split(b" ", 2)[:2]
            record = Submit(
                request_id=_FLOOR, ring=0, generation=0, prompt=bytes(4 * int(tokens)),
                sampling=SamplingParams(max_tokens=1, seed=int(number)), received_ns=time.monotonic_ns(),
            )  # fmt: skip
            self._received = b""
            self._send(record)


class _Commands:
    """What the benchmark asks of the server's process: "pulse" and "no pulse", bodies to time the parts of, "stop"."""

    def __init__(
        self, control: Connection, http: HttpServer, time_parts: Callable[[list[bytes]], dict[str, list[int]]]
    ) -> None:
        self._control = control
        self._http = http
        self._time_parts = time_parts
        self._pulse: _Pulse | None = None

    def obey(self) -> None:
        match self._control.recv():
            case "pulse":
                self._pulse = _Pulse()
                self._control.send("beating")
            case "no pulse":
                assert self._pulse is not None
                self._control.send(self._pulse.end())
            case "stop":
                self._http.should_exit = True
            case bodies:
                self._control.send(self._time_parts(bodies))


class _Pulse:
    """A timer of the kernel in the event loop, which notes when each beat is looked at: see `Beat`."""

    def __init__(self) -> None:
        self._due = time.monotonic_ns() + BEAT_NS
        self._descriptor = _timer(self._due)
        self._cpu = time.thread_time_ns()
        self._beats = array.array("q")  # the members of each Beat
        asyncio.get_running_loop().add_reader(self._descriptor, self._on_beat)

    def _on_beat(self) -> None:
        now = time.monotonic_ns()
        cpu = time.thread_time_ns()
        missed = int.from_bytes(os.read(self._descriptor, 8), sys.byteorder)
        self._beats.extend((now, now - self._due, cpu - self._cpu))
        self._due += missed * BEAT_NS
        self._cpu = cpu

    def end(self) -> array.array[int]:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        return self._beats


class _TimerSpec(ctypes.Structure):
    """struct itimerspec."""

    _fields_ = [(name, ctypes.c_long) for name in ("period_s", "period_ns", "first_s", "first_ns")]


def _timer(first_ns: int) -> int:
    """A timerfd, which Python has from 3.13 on, that beats every `BEAT_NS`."""
    libc, absolute = ctypes.CDLL(None, use_errno=True), 1
    descriptor: int = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    spec = _TimerSpec(0, BEAT_NS, *divmod(first_ns, 10**9))
    if descriptor < 0 or libc.timerfd_settime(descriptor, absolute, ctypes.byref(spec), None):
        raise OSError(ctypes.get_errno(), "timerfd")
    return descriptor


# ---- its parts -------------------------------------------------------------------------------------------------


class _Unread:
    """A TokenSink that nobody reads."""

    def deliver(self, batch: TokenBatch) -> int:
        return batch.reason

    def fail(self, error: Refusal) -> None:
        raise error


def _time_parts(bodies: list[bytes], model: ServedModel, engine: _ReadyEngine) -> dict[str, list[int]]:
    """The time of each of PARTS for each body, in ns, one after the other as `RequestReader.read_chat` has them."""
    reader = GenerationReader(model, num_rings=engine.num_rings, ring_capacity=engine.ring_capacity)
    assert model.chat_template is not None
    taken: dict[str, list[int]] = {part: [] for part in PARTS}
    for body in bodies:
        marks = [time.monotonic_ns()]
        given = reader.with_defaults(decode_object(body))
        marks.append(time.monotonic_ns())
        fields = FieldReader(lenient=False)
        request, messages, _ = read_chat(given, fields, model.chat_template)
        marks.append(time.monotonic_ns())
        pieces = reader.chat_pieces(messages, _MAX_MODEL_LEN)
        marks.append(time.monotonic_ns())
        prompt = model.codec.encode_pieces(pieces, limit=_MAX_MODEL_LEN)
        marks.append(time.monotonic_ns())
        generation = reader.generation(
            request,
            prompt,
            max_tokens=output_limit(request),
            deadlines=[],
            engine=engine.ready,
            received_ns=marks[0],
        )
        dialect = ChatDialect(MODEL, generation, StreamOptions(), model.codec.token_bytes)
        marks.append(time.monotonic_ns())
        [handle] = engine.client.submit_all(
            dialect.answer_id, prompt, [Choice(generation.sampling, _Unread())], received_ns=marks[0]
        )
        marks.append(time.monotonic_ns())
        handle.cancel()
        for part, begin, end in zip(PARTS, marks[:-1], marks[1:], strict=True):
            taken[part].append(end - begin)
    return taken
