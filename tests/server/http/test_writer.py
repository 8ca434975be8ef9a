"""The writer over plain ASGI: order, flow control, disconnects, and dropped connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from rbee.server.http.writer import WRITE_BUFFER_HIGH, WRITE_BUFFER_LOW, AsgiWriter, writer_of

if TYPE_CHECKING:
    from starlette.types import Message

pytestmark = pytest.mark.anyio


class Channel:
    """An ASGI server's two callables: it keeps what is sent, and takes it only while it is open."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.taking = asyncio.Event()
        self.taking.set()
        self.waiting = asyncio.Event()
        self.disconnected = asyncio.Event()
        self.broken = False

    async def send(self, message: Message) -> None:
        """Take a message, once the client reads."""
        self.waiting.set()
        await self.taking.wait()
        if self.broken:
            raise OSError("the client is gone")
        self.sent.append(message)

    async def receive(self) -> Message:
        """The disconnect, which is all that is left to come."""
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    @property
    def body(self) -> bytes:
        """All bodies."""
        return b"".join([message.get("body", b"") for message in self.sent])


class Listener:
    """Keeps the events of a connection."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.closed = asyncio.Event()
        self.resumed = asyncio.Event()

    def on_pause(self) -> None:
        """Keep it."""
        self.events.append("pause")

    def on_resume(self) -> None:
        """Keep it."""
        self.events.append("resume")
        self.resumed.set()

    def on_half_closed(self) -> None:
        """Keep it."""
        self.events.append("half closed")

    def on_closed(self) -> None:
        """Keep it."""
        self.events.append("closed")
        self.closed.set()


@pytest.fixture
async def channel() -> Channel:
    """A client that reads at once."""
    return Channel()


@pytest.fixture
async def writer(channel: Channel) -> AsgiWriter:
    """Not opened yet."""
    writer = writer_of({"type": "http"}, channel.receive, channel.send)
    assert isinstance(writer, AsgiWriter)
    return writer


async def test_a_whole_response(channel, writer):
    """Its head, its frames in order, and its end."""
    await writer.start([(b"content-type", b"text/event-stream")])
    writer.open(Listener())
    for number in range(100):
        writer.write(b"%d," % number)
    await writer.finish()
    writer.close()
    assert channel.sent[0] == {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"text/event-stream")],
    }
    assert channel.body == b"".join([b"%d," % number for number in range(100)])
    assert [message["more_body"] for message in channel.sent[1:]] == [True] * (len(channel.sent) - 2) + [False]


async def test_what_is_written_before_open_waits_for_it(channel, writer):
    """An answer that ends early does not overtake the head of its response."""
    writer.write(b"early")
    await asyncio.sleep(0)
    assert channel.sent == []
    await writer.start([])
    writer.open(Listener())
    await writer.finish()
    writer.close()
    assert channel.sent[0]["type"] == "http.response.start"
    assert channel.body == b"early"


async def test_a_slow_client_pauses_and_resumes_its_listener(channel, writer):
    """Above the high mark once, below the low mark once; all that was written arrives."""
    listener = Listener()
    writer.open(listener)
    channel.taking.clear()
    block = b"x" * (WRITE_BUFFER_HIGH // 4)
    for _ in range(6):
        writer.write(block)
    assert writer.paused
    assert listener.events == ["pause"]
    await channel.waiting.wait()
    channel.taking.set()
    await listener.resumed.wait()
    assert not writer.paused
    await writer.finish()
    writer.close()
    assert listener.events == ["pause", "resume"]
    assert channel.body == block * 6
    assert WRITE_BUFFER_LOW < WRITE_BUFFER_HIGH


async def test_a_disconnect_reaches_the_listener_once(channel, writer):
    """Nothing is written afterwards, and the response ends without an error."""
    listener = Listener()
    writer.open(listener)
    channel.disconnected.set()
    await listener.closed.wait()
    assert writer.closed
    writer.write(b"for a client that is gone")
    await writer.finish()
    writer.close()
    assert listener.events == ["closed"]
    assert channel.sent == []


async def test_open_after_the_disconnect(channel, writer):
    """The listener gets an event that came before it."""
    first, second = Listener(), Listener()
    writer.open(first)
    channel.disconnected.set()
    await first.closed.wait()
    writer.open(second)
    assert second.events == ["closed"]
    writer.close()


async def test_a_send_that_fails_is_a_disconnect(channel, writer):
    """Servers may raise OSError for a client that is gone."""
    listener = Listener()
    writer.open(listener)
    channel.broken = True
    writer.write(b"lost")
    await listener.closed.wait()
    await writer.finish()
    writer.close()
    assert listener.events == ["closed"]


async def test_a_dropped_connection_leaves_the_response_incomplete(channel, writer):
    """The server of the application drops what never got its end."""
    writer.open(Listener())
    channel.taking.clear()
    writer.write(b"never read")
    await channel.waiting.wait()
    writer.abort()
    with pytest.raises(ConnectionAbortedError):
        await writer.finish()
    writer.close()
    assert channel.sent == []
