"""The protocol class on a recorded transport: what a response that is streamed hears of its connection."""

import asyncio
import socket

import pytest

from rbee.server.http.writer import WRITE_BUFFER_HIGH, writer_of
from tests.server.http.protocol_parts import connect

pytestmark = pytest.mark.anyio


class RecordingListener:
    """A StreamListener that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_pause(self) -> None:
        """Keep it."""
        self.heard.append("pause")

    def on_resume(self) -> None:
        """Keep it."""
        self.heard.append("resume")

    def on_half_closed(self) -> None:
        """Keep it."""
        self.heard.append("half closed")

    def on_closed(self) -> None:
        """Keep it."""
        self.heard.append("closed")


async def no_app(scope, receive, send):
    """An application that never answers."""


async def no_receive():
    """Nothing is received in these tests."""
    raise AssertionError("the request is not read")


async def no_send(message):
    """Nothing is sent through ASGI in these tests."""
    raise AssertionError(message)


@pytest.fixture
async def parts():
    """A connected protocol, its transport, the writer of a request that is coming in, and a listener."""
    protocol, transport = connect(no_app)
    protocol.data_received(b"POST ")
    return protocol, transport, writer_of(protocol.scope, no_receive, no_send), RecordingListener()


async def test_slow_clients_cost_is_bounded(parts):
    """The transport has our limit, not its own."""
    assert parts[1].high == WRITE_BUFFER_HIGH


async def readable(sock):
    """Return when the loop has found something to read."""
    seen = asyncio.Event()
    asyncio.get_running_loop().add_reader(sock, seen.set)
    await seen.wait()
    asyncio.get_running_loop().remove_reader(sock)


@pytest.mark.parametrize("unread", [b"", b"GET"])
async def test_client_that_leaves_while_nothing_is_read(unread):
    """Its connection is closed, whatever waits before its end; what is read again or has ended is watched no longer."""
    ours, theirs = socket.socketpair()
    protocol, transport = connect(no_app, ours)
    for _ in range(2):
        protocol.flow.pause_reading()
        protocol.flow.resume_reading()
    protocol.flow.pause_reading()
    with ours, theirs:
        theirs.sendall(unread)
        if unread:
            await readable(ours)
        await asyncio.sleep(0)
        assert not transport.closing
        theirs.shutdown(socket.SHUT_WR)
        while not transport.closing:  # noqa: ASYNC110 - the kernel tells the loop
            await asyncio.sleep(0)
        protocol.connection_lost(None)


async def test_frames_wait_for_the_head(parts):
    """What is written before the response has started follows it, in one write; the rest goes out at once."""
    _, transport, writer, listener = parts
    writer.write(b"one")
    writer.write(b"two")
    assert transport.written == []
    writer.open(listener)
    writer.write(b"x" * 16)
    writer.write_rest(b"framed by somebody else")
    assert transport.written == [
        b"3\r\none\r\n3\r\ntwo\r\n",
        b"10\r\n" + b"x" * 16 + b"\r\n",
        b"framed by somebody else",
    ]


async def test_direct_writer_hears_of_every_byte_that_waits(parts):
    """Nothing may wait unnoticed while somebody else sends to the same socket; the response's end is as any other."""
    _, transport, writer, listener = parts
    writer.open(listener, direct=True)
    assert transport.high == 0
    writer.close()
    assert transport.high == WRITE_BUFFER_HIGH


async def test_ending_connection_has_no_descriptor(parts):
    """Its number may be another connection's before anything is sent."""
    _, transport, writer, _ = parts
    transport.socket = socket.socket()
    with transport.socket:
        assert writer.descriptor == transport.socket.fileno()
        transport.close()
        assert writer.descriptor is None


async def test_a_writer_is_closed_with_its_connection(parts):
    """Whoever holds it is told."""
    protocol, _, writer, _ = parts
    protocol.connection_lost(None)
    assert writer.closed


async def test_listener_hears_of_the_socket_while_it_is_open(parts):
    """Between open and close, and of its end once."""
    protocol, _, writer, listener = parts
    protocol.pause_writing()
    assert writer.paused
    writer.open(listener)
    protocol.resume_writing()
    protocol.pause_writing()
    writer.close()
    protocol.resume_writing()
    assert listener.heard == ["resume", "pause"]
    writer.open(listener)
    protocol.connection_lost(None)
    assert listener.heard == ["resume", "pause", "closed"]


async def test_client_that_has_left_is_noticed_when_opening(parts):
    """Nothing is written to it."""
    _, transport, writer, listener = parts
    writer.write(b"early")
    transport.closing = True
    writer.open(listener)
    writer.write(b"late")
    assert listener.heard == ["closed"]
    assert transport.written == []
