"""A load client for OpenAI-compatible SSE servers that costs almost nothing while the clock runs.

While a response arrives, a stream only appends (time, bytes) pairs; HTTP and SSE are parsed after the run. So the
client's share of the machine stays small, and the same on every server. Owns HTTP/1.1 over plain TCP and the shape of
OpenAI's chunks; does not know what is measured with them.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools


@dataclass
class Frame:
    """One `data:` event: when its last byte was read (CLOCK_MONOTONIC ns) and its payload."""

    read_ns: int
    data: str


@dataclass
class Stream:
    """One request and the raw pieces of its response, in the order they were read."""

    sent_ns: int = 0
    pieces: list[tuple[int, bytes]] = field(default_factory=list)
    status: int = 0
    error: str = ""

    def frames(self) -> list[Frame]:
        """Parse the response: undo chunked encoding, split events, keep for each the time its last byte was read."""
        parser = _ResponseParser()
        frames: list[Frame] = []
        pending = b""
        for read_ns, piece in self.pieces:
            pending += parser.feed(piece)
            *events, pending = pending.replace(b"\r\n", b"\n").split(b"\n\n")
            frames += [Frame(read_ns, event[5:].strip().decode()) for event in events if event.startswith(b"data:")]
        self.status = parser.status
        if self.status != 200:
            self.error = self.error or f"HTTP {self.status}: {parser.body[:200]!r}"
        elif not frames or not (frames[-1].data == "[DONE]" or _FINISHED.search(frames[-1].data)):
            self.error = self.error or "the stream ended without [DONE] or a finish_reason"
        return frames


# Some servers send no [DONE]: there the last chunk has a finish reason.
_FINISHED = re.compile(r'"finish_reason": ?"')
_LAST_CHUNK = b"0\r\n\r\n"


class _ResponseParser:
    """Feeds httptools and hands back the body bytes of each piece."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self._new = b""
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> bytes:
        self._new = b""
        self._parser.feed_data(data)
        self.body += self._new
        return self._new

    def on_status(self, _status: bytes) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._new += body


class _StreamProtocol(asyncio.Protocol):
    """Writes one request, stamps and keeps what comes back until the last chunk or the connection's end."""

    def __init__(self, request: bytes, stream: Stream, done: asyncio.Future[None]) -> None:
        self._request = request
        self._stream = stream
        self._done = done
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._stream.sent_ns = time.monotonic_ns()
        transport.write(self._request)  # type: ignore[attr-defined] # a stream transport, as create_connection makes

    def data_received(self, data: bytes) -> None:
        self._stream.pieces.append((time.monotonic_ns(), data))
        # The last chunk may come alone; a head whose last header ends in 0 is none.
        if (data == _LAST_CHUNK or data.endswith(b"\r\n" + _LAST_CHUNK)) and self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._stream.error = str(exc)
        if not self._done.done():
            self._done.set_result(None)


def body_of(response: bytes) -> bytes:
    """The body of a whole response; SystemExit if its status is not 200."""
    parser = _ResponseParser()
    parser.feed(response)
    if parser.status != 200:
        raise SystemExit(f"HTTP {parser.status}: {parser.body[:200]!r}")
    return parser.body


def http_request(url: str, path: str, payload: dict[str, Any], api_key: str = "") -> tuple[str, int, bytes]:
    """The (host, port, bytes) of a POST of `payload` as JSON to `path` below `url`."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise SystemExit(f"{url!r} is not an http:// URL with a host.")
    body = json.dumps(payload).encode()
    authorization = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
    head = (
        f"POST {parts.path.rstrip('/')}{path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"{authorization}Content-Length: {len(body)}\r\n\r\n"
    )
    return parts.hostname, parts.port or 80, head.encode() + body


async def run_stream(host: str, port: int, request: bytes, timeout_s: float) -> Stream:
    """Send `request` on a connection of its own and collect the response; an error is kept in the stream."""
    loop = asyncio.get_running_loop()
    stream = Stream()
    done: asyncio.Future[None] = loop.create_future()
    transport = None
    try:
        async with asyncio.timeout(timeout_s):
            transport, _ = await loop.create_connection(lambda: _StreamProtocol(request, stream, done), host, port)
            await done
    except TimeoutError:
        stream.error = f"no end of stream within {timeout_s:g} s"
    except OSError as error:
        stream.error = str(error)
    finally:
        if transport is not None:
            transport.close()
    return stream
