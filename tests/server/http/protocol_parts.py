"""A connection's protocol on a transport without a socket, and an application in front of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.server import ServerState

from rbee.server.http.protocol import StreamProtocol
from rbee.server.http.refusals import STATE

if TYPE_CHECKING:
    import socket


class RecordingTransport(asyncio.Transport):
    """A transport without a socket."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.high: int | None = None
        self.reading = True
        self.closing = False
        self.ended = False  # the client has been told that nothing more comes
        self.socket: socket.socket | None = None

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Only the socket is known, if a test has one."""
        return self.socket if name == "socket" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Keep the limit."""
        assert high is not None
        assert low is not None
        assert low < high or low == high == 0
        self.high = high

    def pause_reading(self) -> None:
        """Keep it."""
        self.reading = False

    def resume_reading(self) -> None:
        """Keep it."""
        self.reading = True

    def is_closing(self) -> bool:
        """As told."""
        return self.closing

    def get_write_buffer_size(self) -> int:
        """Nothing waits."""
        return 0

    def can_write_eof(self) -> bool:
        """Like TCP's."""
        return True

    def write_eof(self) -> None:
        """Keep it."""
        assert not self.closing
        self.ended = True

    def close(self) -> None:
        """As asked."""
        self.closing = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it; a closed transport must be left alone."""
        assert not self.closing
        self.written.append(bytes(data))


def connect(app, sock=None, **options):
    """A connected protocol in front of `app`, and its transport."""
    protocol = StreamProtocol(uvicorn.Config(app, log_config=None), ServerState(), {}, **options)
    transport = RecordingTransport()
    transport.socket = sock
    protocol.connection_made(transport)
    return protocol, transport


class RefusingApp:
    """Answers what the protocol has refused with the code, and all else with "ok", once it may."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.received: list[str] = []
        self.refused: list[str] = []
        self.reasons: list[str] = []

    async def __call__(self, scope, receive, send):
        refusal = scope["state"].get(STATE)
        if refusal is None:
            message = await receive()
            while message.get("more_body"):
                message = await receive()
            self.received.append(message["type"])
            await self.may_answer.wait()
        else:
            self.refused.append(refusal.code)
            self.reasons.append(str(refusal))
        body = b"ok" if refusal is None else refusal.code.encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 400 if refusal else 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def feed(protocol, transport, pieces):
    """Send pieces until nothing is read any more; bytes taken."""
    taken = 0
    for piece in pieces:
        if transport.closing or transport.ended or not transport.reading:
            break
        protocol.data_received(piece)
        taken += len(piece)
        await settle()
    return taken


async def settle():
    """Let the application come as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def end(protocol):
    """Close the connection, and wait for what was answering on it."""
    protocol.connection_lost(None)
    tasks = list(protocol.server_state.tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
