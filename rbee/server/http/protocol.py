"""uvicorn's HTTP protocol, open to a `rbee.server.http.writer.SocketWriter`, with bounded heads and write buffers.

Owns what a connection passes on: flow control and the end of the socket, to the response that is being streamed. An
ASGI `send()` per frame would cost a task switch per token (`benchmarks/results/frames.md` has the figures). Knows
nothing of tokens.

`uvicorn.Config(http=StreamProtocol)` is the supported way to bring a protocol class. The attributes that it uses
(`transport`, `flow`, `cycle`, `scope`) are public, but no documented interface: pyproject.toml bounds uvicorn.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rbee.server.errors import Refusal, RefusalKind
from rbee.server.http import refusals
from rbee.server.http.writer import EXTENSION, WRITE_BUFFER_HIGH, WRITE_BUFFER_LOW, SocketWriter

if TYPE_CHECKING:
    import asyncio

    from rbee.server.http.writer import WriterListener

# A request's line and headers together; a client that sends more is cut off. (uvicorn bounds them only with h11.)
MAX_HEAD_BYTES = 64 * 1024

_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b"
)


class StreamProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol that lets each request make a `SocketWriter`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.listener: WriterListener | None = None  # of the one response that is being streamed
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
            body = refusals.envelope(Refusal(RefusalKind.HEAD_TOO_LARGE, message, code="headers_too_large"))
            self.transport.write(_HEAD_TOO_LARGE % (len(body), body))
        self.transport.close()

    def on_message_begin(self) -> None:
        """Called by the parser when a request begins."""
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: partial(SocketWriter, self)}  # type: ignore[dict-item] # uvicorn types plain data

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
