"""The way of one streamed response to its client, whatever ASGI server the application runs under.

Owns flow control and both ways: `SocketWriter` under our own uvicorn protocol, which writes without a task switch per
frame (benchmarks/results/frames.md has its cost), and `AsgiWriter` over plain ASGI `send`. Knows nothing of tokens.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.types import Receive, Scope, Send

EXTENSION = "rbee.stream"  # of the ASGI scope: makes the Writer of the response from its `send`
HAS_LEFT = "rbee.has_left"  # of the ASGI scope: tells, from any thread, whether the client has left
KEEP_ALIVE = "rbee.keep_alive"  # of the ASGI scope: how long the connection may be idle after the response, in seconds

# Bytes that may wait in user space for a slow client's socket before its ring is paused. The drain that passes the
# limit adds at most what its ring held; a paused ring is not drained.
WRITE_BUFFER_HIGH = 32 * 1024
WRITE_BUFFER_LOW = 8 * 1024


class WriterListener(Protocol):
    """Gets the events of a response's connection. A `write` that fills it calls `on_pause` before it returns."""

    def on_pause(self) -> None: ...

    def on_resume(self) -> None: ...

    def on_half_closed(self) -> None:
        """The client has ended its side: write something that means nothing, and it shows whether it is there."""

    def on_closed(self) -> None:
        """The client is gone; called once at most."""


class Writer(Protocol):
    """One response's way to its client: `start`, `open`, `write` from anywhere in the event loop, `finish`, `close`.

    What is written before `open` waits for it: an answer that ends early must not overtake the head of its response.
    The head and the last, empty body go through `send`, so that the server's view of the response is right.
    """

    @property
    def closed(self) -> bool: ...

    @property
    def paused(self) -> bool: ...

    @property
    def descriptor(self) -> int | None:
        """The socket, for the native drain; None if its bytes are not the response's, or it is about to be closed."""

    async def start(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Send the head of the response: status 200 and `headers`."""

    def open(self, listener: WriterListener, *, direct: bool = False) -> None:
        """Let frames out and give the connection's events to `listener`, at once if the client is gone.

        With `direct` the native drain sends to `descriptor` too. Then `on_pause` comes as soon as a single byte waits
        in user space, because what is sent past it would overtake it, and `on_resume` when none does.
        """

    def write(self, frames: bytes) -> None:
        """Send `frames`, which are not empty, in one write. Does nothing if the client is gone."""

    def write_rest(self, data: bytes) -> None:
        """Send what `descriptor` did not take of chunks that the native drain has framed."""

    async def finish(self) -> None:
        """Complete the response. Returns when the server has taken everything, which waits for a slow client."""

    def close(self) -> None:
        """End the events. Harmless if it was not open."""

    def abort(self) -> None:
        """Drop the connection, with all that waits for it."""


class Flow(Protocol):
    """uvicorn's flow control of one connection."""

    write_paused: bool


class Connection(Protocol):
    """The protocol object of a connection, as `SocketWriter` uses it."""

    transport: asyncio.Transport
    listener: WriterListener | None  # of the one response that is being streamed

    @property
    def flow(self) -> Flow: ...

    @property
    def takes_chunks(self) -> bool:
        """Whether the client whose request is being answered knows chunked framing: not with HTTP/1.0."""

    def leave_unframed(self) -> None:
        """Announce no framing for the response that begins; it ends with its connection."""

    def answers(self, number: int) -> bool:
        """Whether the response to the request of this number can be sent: a refusal may have taken its place."""


def writer_of(scope: Scope, receive: Receive, send: Send) -> Writer:
    """The writer of a request's response: past ASGI where our own protocol serves it, else over `send`."""
    make: Callable[[Send], Writer] | None = scope.get("extensions", {}).get(EXTENSION)
    return AsgiWriter(receive, send) if make is None else make(send)


class SocketWriter:
    """Writes HTTP/1.1 chunks to the transport of our own protocol; for a client of HTTP/1.0 the bytes as they are."""

    __slots__ = ("_chunked", "_connection", "_early", "_number", "_opened", "_send")

    def __init__(self, connection: Connection, number: int, send: Send) -> None:
        self._connection = connection
        self._number = number
        self._chunked = connection.takes_chunks
        self._send = send
        self._opened = False
        self._early = b""

    @property
    def closed(self) -> bool:
        return self._connection.transport.is_closing() or not self._connection.answers(self._number)

    @property
    def paused(self) -> bool:
        return self._connection.flow.write_paused

    @property
    def descriptor(self) -> int | None:
        """None under TLS, without chunks, and for a connection that is ending: its number may soon be another one's."""
        transport = self._connection.transport
        if not self._chunked or transport.get_extra_info("sslcontext") is not None or self.closed:
            return None
        return transport.get_extra_info("socket").fileno()  # type: ignore[no-any-return] # untyped in asyncio

    async def start(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        if not self._chunked:
            self._connection.leave_unframed()
        await _send_start(self._send, headers)

    def open(self, listener: WriterListener, *, direct: bool = False) -> None:
        self._opened = True
        self._connection.listener = listener
        if direct:
            self._connection.transport.set_write_buffer_limits(high=0, low=0)
        if self._early:
            self.write_rest(self._early)
        if self.closed:
            listener.on_closed()

    def write(self, frames: bytes) -> None:
        self.write_rest(b"%x\r\n%b\r\n" % (len(frames), frames) if self._chunked else frames)

    def write_rest(self, data: bytes) -> None:
        if not self._opened:
            self._early += data
        elif not self.closed:
            self._connection.transport.write(data)

    async def finish(self) -> None:
        await _send_end(self._send)

    def close(self) -> None:
        self._connection.listener = None
        if not self.closed:
            self._connection.transport.set_write_buffer_limits(high=WRITE_BUFFER_HIGH, low=WRITE_BUFFER_LOW)

    def abort(self) -> None:
        self._connection.transport.abort()


class AsgiWriter:
    """Writes with ASGI's `send`, in a task of its own; `receive` reports a disconnect.

    The request's body must have been read: `receive` has only the disconnect left to give.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._waiting: deque[bytes] = deque()
        self._num_waiting = 0  # bytes in `_waiting` and in the send that is under way
        self._opened = False
        self._listener: WriterListener | None = None
        self._pump: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._aborted = False
        self.paused = False
        self.closed = False

    @property
    def descriptor(self) -> None:
        return  # ASGI has none

    async def start(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        await _send_start(self._send, headers)

    def open(self, listener: WriterListener, *, direct: bool = False) -> None:
        assert not direct, "there is no descriptor to send to"
        self._opened = True
        self._listener = listener
        if self._watch is None:
            self._watch = asyncio.create_task(self._await_disconnect())
        if self._waiting:
            self._start_pump()
        if self.closed:
            listener.on_closed()

    def write(self, frames: bytes) -> None:
        self.write_rest(frames)

    def write_rest(self, data: bytes) -> None:
        if self.closed:
            return
        self._waiting.append(data)
        self._num_waiting += len(data)
        if self._opened:
            self._start_pump()
        if self._num_waiting > WRITE_BUFFER_HIGH and not self.paused:
            self.paused = True
            if self._listener is not None:
                self._listener.on_pause()

    async def finish(self) -> None:
        """See `Writer`.

        Raises:
            ConnectionAbortedError: `abort` was called. The server then drops a response that is not complete.
        """
        while self._pump is not None and not self._aborted:
            await asyncio.wait([self._pump])
        if self._aborted:
            raise ConnectionAbortedError("The connection was dropped: its client does not read.")
        if not self.closed:
            await _send_end(self._send)

    def close(self) -> None:
        self._listener = None
        for task in (self._watch, self._pump):
            if task is not None:
                task.cancel()

    def abort(self) -> None:
        """See `Writer`. ASGI can only leave the response incomplete: `finish` raises."""
        self._aborted = True
        self._waiting.clear()
        if self._pump is not None:
            self._pump.cancel()
        self._on_closed()

    def _start_pump(self) -> None:
        if self._pump is None:
            self._pump = asyncio.create_task(self._send_waiting())

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                data = b"".join(self._waiting)  # all that has gathered during the last send
                self._waiting.clear()
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
                self._num_waiting -= len(data)
                if self.paused and self._num_waiting <= WRITE_BUFFER_LOW:
                    self.paused = False
                    if self._listener is not None:
                        self._listener.on_resume()
        except OSError:  # what ASGI raises for a client that is gone
            self._on_closed()
        finally:
            self._pump = None

    async def _await_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._on_closed()

    def _on_closed(self) -> None:
        if not self.closed:
            self.closed = True
            listener, self._listener = self._listener, None
            if listener is not None:
                listener.on_closed()


async def _send_start(send: Send, headers: Sequence[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": list(headers)})


async def _send_end(send: Send) -> None:
    await send({"type": "http.response.body", "body": b"", "more_body": False})
