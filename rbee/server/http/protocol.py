"""uvicorn's HTTP protocol, open to a `rbee.server.http.writer.SocketWriter`, with bounded heads and write buffers.

Owns what a connection passes to the response that is being streamed: flow control and the end of the socket; and the
refusals of what cannot be read as a request. Knows nothing of tokens. `uvicorn.Config(http=StreamProtocol)` is the
supported way to bring a protocol class. Its attributes `transport`, `flow`, `cycle`, `scope` and `pipeline`, and
cycles, are public but not documented, `_start_asgi_task` and `_unset_keepalive_if_required` are private: pyproject.toml
bounds uvicorn.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl

from rbee.server.errors import Refusal, RefusalKind
from rbee.server.http import refusals
from rbee.server.http.departures import Departures, WatchedFlow
from rbee.server.http.heads import Cuts, UnreadableHeadError, body_length, checked_target, unreadable
from rbee.server.http.rest import Outgoing, Rest
from rbee.server.http.unread import Layers, UnreadBytes
from rbee.server.http.upgrades import DecliningParser
from rbee.server.http.writer import EXTENSION, HAS_LEFT, KEEP_ALIVE, WRITE_BUFFER_HIGH, WRITE_BUFFER_LOW, SocketWriter

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

    from rbee.server.http.writer import WriterListener

MAX_HEAD_BYTES = 64 * 1024  # of all that a request has beside its body; uvicorn bounds it only with h11
_NUMBER = "rbee.number"  # of a request on its connection
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_FRAMING_OF_A_BYTE = 8  # bytes of chunk sizes that each byte of a body may bring: a chunk of one byte has five


class StreamProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol that lets each request make a `SocketWriter`.

    Args:
        departures: watches the connections of a server that are not read.
        unread_timeout: seconds that the bytes of an answer may wait for a client that takes none of them.
        head_timeout: seconds that a new connection, or a request that has begun, may take to the end of its head.
        waited: how many of them the first one has taken already.
        came: what has come of it.
    """

    flow: WatchedFlow
    _unread: UnreadBytes
    _outgoing: Outgoing

    def __init__(
        self,
        *args: Any,
        departures: Departures | None = None,
        unread_timeout: float = 60.0,
        head_timeout: float = 30.0,
        waited: float = 0.0,
        came: bytes = b"",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.parser: DecliningParser = DecliningParser(self)
        self._departures = departures or Departures()
        self._unread_timeout = unread_timeout
        self._head_timeout = head_timeout
        self._waited = waited
        self._came = came
        self.carrier: asyncio.Transport | None = None  # of the TLS that `transport` is
        self._late_head: asyncio.TimerHandle | None = None  # while a head is waited for
        self._answering: RequestResponseCycle | None = None  # `cycle` is the newest, perhaps of a request that waits
        self.listener: WriterListener | None = None  # of the one response that is being streamed
        self._number = 0  # of the newest request
        self._in_head = False  # the parser is between the beginning of a request and the end of its head
        self._cuts = Cuts()
        self._framing_bytes = 0  # of the present request: line, headers, sizes and extensions of chunks, trailers
        self._unreadable = False  # nothing that comes is looked at any more
        self._in_body = False  # the newest request has not come to its end
        self._body_left = 0  # bytes of its body that are to come, if its head says how many
        self._has_asked = False  # whether the client is there, before the present answer
        self._rest: Rest | None = None  # of an answered request, while it comes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in the base class
        # In place of uvicorn's, which asks the kernel seven times for two addresses.
        self.connections.add(self)
        self.transport = transport
        if self.server is None:  # else a subclass knows them
            self.server, self.client = get_local_addr(transport), get_remote_addr(transport)
        self.scheme = "https" if is_ssl(transport) else "http"
        transport.set_write_buffer_limits(high=WRITE_BUFFER_HIGH, low=WRITE_BUFFER_LOW)
        self.flow = WatchedFlow(transport, self._departures, self._on_end, self._ask)
        self._unread = UnreadBytes(
            transport if self.carrier is None else Layers(transport, self.carrier),
            self._unread_timeout,
            lambda: self.listener is not None,
            clock=self.loop.time,
            call_later=self.loop.call_later,
        )
        self._outgoing = Outgoing(transport, self.close_behind_answer)
        came, self._came = self._came, b""
        if came:
            self.data_received(came)
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._rest is not None:
            self._rest.throw_away(len(data))
        if self._unreadable or self.transport.is_closing():
            return
        self._framing_bytes += len(data)
        self._parse(data)
        if self._framing_bytes > MAX_HEAD_BYTES and not (self._unreadable or self.transport.is_closing()):
            message = (
                f"The request's line and headers, or what else it has beside its body, are larger than "
                f"{MAX_HEAD_BYTES} bytes; send fewer or shorter ones."
            )
            self._refuse(Refusal(RefusalKind.HEAD_TOO_LARGE, message, code="headers_too_large"))
        elif self._late_head is None and (self._in_head or self._is_idle()):
            self._await_head()

    def _is_idle(self) -> bool:
        """Whether no request has begun that is not answered: of the next one there are at most empty lines."""
        return not self._in_body and (self.cycle is None or self.cycle.response_complete)

    def on_headers_complete(self) -> None:
        if self.parser.offered:  # the head comes again without the offer
            return
        version = self.parser.get_http_version()
        self.url = checked_target(self.url, self.headers, version)
        self.expect_100_continue &= version != "1.0"  # which has no interim answers
        self._in_head = False
        self._in_body = True
        self._body_left = body_length(self.headers)
        self._stop_awaiting_head()
        super().on_headers_complete()
        self.cycle.transport = self._outgoing  # type: ignore[assignment] # all of it that a cycle uses
        if self.cycle.keep_alive:
            self.scope["extensions"][KEEP_ALIVE] = {"timeout": self.timeout_keep_alive}

    def on_message_complete(self) -> None:
        if self.parser.offered:
            return
        self._in_body = False
        super().on_message_complete()
        if self._rest is None:
            self.on_answering()
        else:
            self._stop_awaiting_rest()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer: the request has been looked at, and must not get other headers
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._framing_bytes = max(0, self._framing_bytes - _FRAMING_OF_A_BYTE * len(body))
        self._body_left = max(0, self._body_left - len(body))
        super().on_body(body)

    def eof_received(self) -> bool:  # type: ignore[override] # uvicorn's has no answer
        """The client has ended its side; whether the connection stays open, for the answer."""
        self._on_end()
        if self.transport.is_closing():
            return False
        if self._in_body and self.cycle is not self._answering and self.cycle.more_body:
            self.pipeline.popleft()  # the request that has not come to its end
            self.cycle = self.pipeline[0][0] if self.pipeline else self._answering  # type: ignore[assignment] # awaited
        self._in_body = False
        self._keep_no_longer()
        return True

    def _keep_no_longer(self) -> None:
        """The newest request is the connection's last one."""
        self.cycle.keep_alive = False
        self.cycle.scope["extensions"].pop(KEEP_ALIVE, None)

    def _on_end(self) -> None:
        """The client has ended its side, though it may have sent more that is not read yet."""
        if self._may_wait() and not self.has_left():
            self.flow.await_reset()
        else:
            self.transport.close()

    def _may_wait(self) -> bool:
        """Whether a client that has ended its side can still be waiting for an answer, and can be asked."""
        cycle = self._answering
        awaited = cycle is not None and not cycle.response_complete and not cycle.more_body
        return awaited and self.takes_chunks and self.transport.can_write_eof()  # TLS ends with both sides

    def _ask(self) -> bool:
        """Send something to a client that has ended its side; False if it has left for sure.

        Who has closed both sides answers with a reset. To the others an interim response means nothing (RFC 9110,
        15.2), nor does a comment in a stream.
        """
        if not self._may_wait():
            return False
        if self._answering is not None and not self._answering.response_started:
            if not self._has_asked:
                self._has_asked = True
                with contextlib.suppress(OSError):
                    os.write(self.transport.get_extra_info("socket").fileno(), _CONTINUE)
        elif self.listener is not None:
            self.listener.on_half_closed()
        return True

    def on_waiting(self) -> None:
        """From now on this connection waits for its client."""

    def on_answering(self) -> None:
        """From now on the client waits for an answer."""

    def close_behind_answer(self) -> None:
        """Close the connection, whose last answer has been written.

        What a client sends to a closed connection takes the answer from it (TCP's reset). So the one that is still
        sending is told the end, and what comes until it closes its own end is thrown away, up to a bound.
        """
        self.pipeline.clear()  # what came behind it is not looked at
        if self._in_body and not self.transport.is_closing() and self.transport.can_write_eof():
            self._unreadable = True
            self.transport.write_eof()
        else:
            self.transport.close()

    def _stop_awaiting_rest(self) -> None:
        if self._rest is not None:
            self._rest.end()
            self._rest = None

    def _await_head(self) -> None:
        self._late_head = self.loop.call_later(max(0.0, self._head_timeout - self._waited), self._on_late_head)

    def _stop_awaiting_head(self) -> None:
        self._waited = 0.0
        if self._late_head is not None:
            self._late_head.cancel()
            self._late_head = None

    def _on_late_head(self) -> None:
        self._late_head = None
        if self.flow.read_paused:  # the rest may have come: its time begins anew when earlier requests are answered
            return
        if not self._framing_bytes:  # nobody has asked for anything
            self.transport.close()
        elif not self._unreadable:
            message = f"The request's line and headers did not arrive within {self._head_timeout:g} s."
            self._refuse(Refusal(RefusalKind.BODY_TIMED_OUT, message, code="request_timeout"))

    def _parse(self, data: bytes) -> None:
        """As uvicorn does, which has another answer where the parser gives up."""
        self._unset_keepalive_if_required()
        begin = 0
        try:
            while begin < len(data):
                if self._body_left:
                    end = begin + self._body_left
                else:
                    end = self._cuts.end(data, begin, begins=not (self._in_head or self._in_body))
                self.parser.feed_data(data[begin:end])
                begin = end
        except (httptools.HttpParserError, UnreadableHeadError) as error:
            self._refuse(unreadable(error))
        except httptools.HttpParserUpgrade:  # CONNECT: what follows belongs to no request
            self._unreadable = True
            self._keep_no_longer()

    def _refuse(self, refusal: Refusal) -> None:
        """Have the application answer with `refusal`, as it does with others, and the connection closed then.

        What comes is no request any more. Behind a request that is not answered yet, that answer goes first; unless it
        is that request's body that cannot be read.
        """
        self._unreadable = True
        self._stop_awaiting_head()
        if self._rest is not None:  # of a request that is answered
            self.transport.close()
            return
        before = self.cycle
        is_next = before is None or before.response_complete
        if not is_next and before.more_body:
            if before.response_started:
                self.transport.close()
                return
            before.disconnected = True
            before.message_event.set()
            is_next = before is self._answering
            if not is_next:  # it has not begun: the refusal takes its turn
                self.pipeline.popleft()
        self.on_message_begin()
        self.scope["method"] = self.scope["path"] = ""
        self.scope["raw_path"] = self.scope["query_string"] = b""
        self.scope["state"][refusals.STATE] = refusal
        self._in_body = True  # there may be more of it
        self.cycle = RequestResponseCycle(
            scope=self.scope,
            transport=self._outgoing,  # type: ignore[arg-type] # the same
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=self.on_response_complete,
        )
        self.cycle.more_body = False
        if is_next:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._framing_bytes = True, 1  # the others of this piece may belong to an earlier request
        self._number += 1
        self.scope["state"][_NUMBER] = self._number
        make = partial(SocketWriter, self, self._number)
        self.scope["extensions"] = {EXTENSION: make, HAS_LEFT: self.has_left}  # type: ignore[dict-item] # uvicorn types plain data

    def on_response_complete(self) -> None:
        is_last = not self.pipeline
        super().on_response_complete()
        self._unread.wrote()
        if not is_last:
            return
        self.on_waiting()
        if self.transport.is_closing():  # TLS waits for the client's own end
            return
        if self._in_body:
            self._rest = Rest(self.transport, lambda: not self.flow.read_paused, self.loop.call_later)
        elif self._in_head and self._late_head is None:
            self._await_head()

    def has_left(self) -> bool:
        """Whether the client has left, though that may not have been read yet; from any thread."""
        left = self.transport.is_closing() or self.flow.has_left()
        answering = self._answering
        if left and answering is not None and not answering.disconnected:
            answering.disconnected = True  # nothing is sent any more, whether its end has been read or not
            self.loop.call_soon_threadsafe(self.transport.close)
        return left

    def answers(self, number: int) -> bool:
        cycle = self._answering
        return cycle is None or (not cycle.disconnected and cycle.scope["state"][_NUMBER] == number)

    @property
    def takes_chunks(self) -> bool:
        return self._answering is None or self._answering.scope["http_version"] != "1.0"

    def leave_unframed(self) -> None:
        if self._answering is not None:
            self._answering.chunked_encoding = False  # uvicorn decides on it by the response's headers alone

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread.wrote()
        if self.listener is not None:
            self.listener.on_pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.listener is not None:
            self.listener.on_resume()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        self._has_asked = False
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        self.flow.end()
        self._unread.end()
        self._stop_awaiting_head()
        self._stop_awaiting_rest()
        self._unset_keepalive_if_required()  # uvicorn's timer holds a connection that was reset for all its time
        super().connection_lost(exc)
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.on_closed()
        # These refer to this protocol, which without them is freed when it ends.
        self.cycle = self.scope = self._answering = self._unread = self._outgoing = self.flow = None  # type: ignore[assignment]
        self.pipeline.clear()
