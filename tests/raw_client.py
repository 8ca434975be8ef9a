"""A client that shows what is on the wire: raw bytes, and the SSE events in them.

Owns no policy: no retries, no decoding beyond chunked transfer and JSON. One connection per request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
STREAMS = "/v1/streams"
SMALLEST_SEGMENT = 536  # bytes; every TCP takes such segments


def request_bytes(path: str, body: dict[str, Any], *headers: str) -> bytes:
    """A POST request with a JSON body."""
    content = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    ]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + content


def limit_receive_buffer(sock: socket.socket, size: int) -> None:
    """Let an unconnected socket hold about `size` bytes that nobody has read.

    A sender that waits for room for a whole segment, where there never is any, sends a little whenever a timer of TCP
    runs out: five times a second. Loopback's segments have 64 kB, so they are made smaller along with the buffer.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, max(size // 8, SMALLEST_SEGMENT))


@dataclass
class Stream:
    """A response that is being read."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int
    headers: dict[str, str]

    async def chunks(self) -> AsyncIterator[bytes]:
        """The chunks of the body as the server wrote them; returns after the last one."""
        while size := int(await self.reader.readline(), 16):
            chunk = await self.reader.readexactly(size + 2)
            yield chunk[:-2]
        assert await self.reader.readline() == b"\r\n"

    async def events(self) -> AsyncIterator[Any]:
        """The data of each event: parsed JSON, or the string [DONE]. Comments are left out."""
        async for chunk in self.chunks():
            if chunk.startswith(b":"):
                continue
            assert chunk.endswith(b"\n\n"), "a write may not end inside a frame"
            for frame in chunk.split(b"\n\n")[:-1]:
                data = frame.removeprefix(b"data: ")
                yield "[DONE]" if data == b"[DONE]" else json.loads(data)

    def abort(self) -> None:
        """Drop the connection."""
        self.writer.transport.abort()


class Client:
    """Connections to one server; those still open at the end of its block are dropped.

    The block may take a minute: a server that hangs fails the test.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._timeout = await asyncio.timeout(60).__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._drop_all()
        await self._timeout.__aexit__(kind, error, trace)

    async def _drop_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def send(
        self, path: str, body: dict[str, Any], *headers: str, receive_buffer: int | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request on a new connection. A small `receive_buffer` makes a slow reader slow at once."""
        return await self.send_raw(request_bytes(path, body, *headers), receive_buffer=receive_buffer)

    async def send_raw(
        self, data: bytes, *, receive_buffer: int | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send any bytes on a new connection."""
        sock = socket.socket()
        if receive_buffer is not None:
            limit_receive_buffer(sock, receive_buffer)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, self._address)
        except OSError:
            sock.close()
            raise
        reader, writer = await asyncio.open_connection(sock=sock, limit=receive_buffer or 2**16)
        self._writers.append(writer)
        writer.write(data)
        return reader, writer

    async def open(self, path: str, body: dict[str, Any], *headers: str, receive_buffer: int | None = None) -> Stream:
        """Send a request and read the head of its response."""
        reader, writer = await self.send(path, body, *headers, receive_buffer=receive_buffer)
        status = int((await reader.readline()).split()[1])
        fields = {}
        while line := (await reader.readline()).strip():
            name, _, value = line.decode().partition(": ")
            fields[name] = value
        return Stream(reader, writer, status, fields)

    async def read(self, path: str, body: dict[str, Any]) -> list[Any]:
        """All events of a streamed response."""
        stream = await self.open(path, body | {"stream": True})
        assert stream.status == 200
        return [event async for event in stream.events()]


async def read_stream(address: tuple[str, int], path: str, body: dict[str, Any]) -> list[Any]:
    """All events of a streamed response, for a test that has no other connection."""
    async with Client(address) as client:
        return await client.read(path, body)


def text_of(events: list[Any]) -> str:
    """What the chunks of a stream say, of either kind."""
    choices = [choice for event in events if event != "[DONE]" for choice in event.get("choices", [])]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)
