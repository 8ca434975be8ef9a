"""uvicorn's HTTP protocol with a direct way from the drain callback to the socket.

Owns chunk framing and the socket's flow control for streamed responses. An ordinary ASGI `send()` is a coroutine: using
it for each frame costs a task switch per token (`benchmarks/results/frames.md` has what that costs). So the response's
start and its last, empty body go through `send()`, which keeps uvicorn's view of the response right, and the frames
in between go past it: written here, or sent by the native drain to the socket that `descriptor` names. Knows nothing of
tokens.

`uvicorn.Config(http=StreamProtocol)` is the supported way to bring a protocol class; only public attributes are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rbee.server.errors import ApiError

if TYPE_CHECKING:
    import asyncio

EXTENSION = "rbee.stream"

# What may wait in user space for a slow client's socket before its ring is paused. One drain can add to it what the
# ring held (ring_capacity frames of some 200 bytes) and no more, because a paused ring is not drained.
WRITE_BUFFER_HIGH = 32 * 1024
WRITE_BUFFER_LOW = 8 * 1024

# A request's line and headers together; a client that sends more is cut off. (uvicorn bounds them only with h11.)
MAX_HEAD_BYTES = 64 * 1024

_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b"
)


class StreamListener(Protocol):
    """What hears of a stream's socket. `on_pause` can come while `write` still runs: a write may fill the buffer."""

    def on_pause(self) -> None:
        """The client reads too slowly: nothing should be written now."""

    def on_resume(self) -> None:
        """The socket takes bytes again."""

    def on_closed(self) -> None:
        """The client is gone; called once at most."""


class StreamWriter:
    """One response's way to the socket; `scope["extensions"]["rbee.stream"]` of its request.

    Between `open()` and `close()`, `write()` sends chunks and the listener hears of the socket. What is written before
    waits for `open()`: an answer that ends early must not overtake the head of its response.
    """

    __slots__ = ("_early", "_opened", "_protocol")

    def __init__(self, protocol: StreamProtocol) -> None:
        self._protocol = protocol
        self._opened = False
        self._early = b""

    @property
    def closed(self) -> bool:
        """Whether the client is gone."""
        return self._protocol.transport.is_closing()

    @property
    def paused(self) -> bool:
        """Whether more bytes are waiting for the socket than should."""
        return self._protocol.flow.write_paused

    @property
    def descriptor(self) -> int | None:
        """The socket, for whoever sends past the event loop.

        None if its bytes are not the response's bytes (TLS), or if the connection is ending: its number may soon be
        another connection's.
        """
        transport = self._protocol.transport
        if transport.get_extra_info("sslcontext") is not None or transport.is_closing():
            return None
        return transport.get_extra_info("socket").fileno()  # type: ignore[no-any-return] # untyped in asyncio

    def open(self, listener: StreamListener, *, direct: bool = False) -> None:
        """The response has started: from now on frames go out, and `listener` hears of the socket.

        Also makes sure that a disconnect is noticed: reading may have been paused while a large request body came in,
        and a socket that is not read shows no end.

        Args:
            listener: hears of this response only.
            direct: somebody sends to `descriptor` too. Then the listener hears `on_pause` as soon as a single byte
                waits in user space, because what is sent past it would overtake it, and `on_resume` when none does.
        """
        self._opened = True
        self._protocol.listener = listener
        if direct:
            self._protocol.transport.set_write_buffer_limits(high=0, low=0)
        self._protocol.flow.resume_reading()
        if self._early:
            self.write_rest(self._early)
        if self.closed:
            listener.on_closed()

    def close(self) -> None:
        """The response goes on through ASGI; the listener hears no more."""
        self._protocol.listener = None
        if not self.closed:
            self._protocol.transport.set_write_buffer_limits(high=WRITE_BUFFER_HIGH, low=WRITE_BUFFER_LOW)

    def write(self, frames: bytes) -> None:
        """Send `frames` (not empty) as one HTTP/1.1 chunk, in one write. Nothing happens if the client is gone."""
        self.write_rest(b"%x\r\n%b\r\n" % (len(frames), frames))

    def write_rest(self, data: bytes) -> None:
        """Send what is left of chunks that somebody else has framed, for `descriptor`."""
        transport = self._protocol.transport
        if not self._opened:
            self._early += data
        elif not transport.is_closing():
            transport.write(data)

    def abort(self) -> None:
        """Drop the connection, with whatever waits for it."""
        self._protocol.transport.abort()


class StreamProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol that gives each request a `StreamWriter`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.listener: StreamListener | None = None  # of the one response that is being streamed
        self._in_head = True  # the parser is before the end of a request's head
        self._only_head = True  # the data just received is, as far as it has been parsed, a part of a head
        self._head_bytes = 0  # of the present head so far, in such pieces

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in the base class
        """Bound what a slow client can make us hold."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_HIGH, low=WRITE_BUFFER_LOW)

    def data_received(self, data: bytes) -> None:
        """Called by the transport; bounds what a head that never ends can make us hold."""
        self._only_head = self._in_head
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._only_head else 0
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse_head()

    def on_headers_complete(self) -> None:
        """Called by the parser when a request's head is complete."""
        self._in_head = self._only_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called by the parser when a request's body is complete."""
        self._in_head = True
        super().on_message_complete()

    def _refuse_head(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            message = (
                f"The request's line and headers are larger than {MAX_HEAD_BYTES} bytes; send fewer or shorter ones."
            )
            body = ApiError(431, message, code="headers_too_large").envelope()
            self.transport.write(_HEAD_TOO_LARGE % (len(body), body))
        self.transport.close()

    def on_message_begin(self) -> None:
        """Called by the parser when a request begins."""
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: StreamWriter(self)}  # type: ignore[dict-item] # uvicorn types plain data

    def pause_writing(self) -> None:
        """Called by the transport when more than WRITE_BUFFER_HIGH bytes wait."""
        super().pause_writing()
        if self.listener is not None:
            self.listener.on_pause()

    def resume_writing(self) -> None:
        """Called by the transport when fewer than WRITE_BUFFER_LOW bytes wait."""
        super().resume_writing()
        if self.listener is not None:
            self.listener.on_resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the transport when the client is gone."""
        super().connection_lost(exc)
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.on_closed()
        # The request knows its protocol. What still runs has its own hold on it; without ours it is freed when that
        # ends, and not when the garbage collector comes by.
        self.cycle = self.scope = None  # type: ignore[assignment]
