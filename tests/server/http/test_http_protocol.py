"""The protocol class on a recorded transport: what cannot be timed on a real socket."""

import asyncio
import socket

import pytest
import uvicorn
from uvicorn.server import ServerState

from rbee.server.http.protocol import MAX_HEAD_BYTES, StreamProtocol
from rbee.server.http.refusals import STATE
from rbee.server.http.writer import HAS_LEFT, WRITE_BUFFER_HIGH, writer_of

pytestmark = pytest.mark.anyio


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


def connect(app, sock=None, **options):
    """A connected protocol in front of `app`, and its transport."""
    protocol = StreamProtocol(uvicorn.Config(app, log_config=None), ServerState(), {}, **options)
    transport = RecordingTransport()
    transport.socket = sock
    protocol.connection_made(transport)
    return protocol, transport


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


async def test_connection_that_was_lost_leaves_no_cycle(parts):
    """The protocol lets go of its request, which knows it."""
    protocol, _, writer, _ = parts
    protocol.connection_lost(None)
    assert protocol.cycle is None
    assert protocol.scope is None
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


class RefusingApp:
    """Answers what the protocol has refused with the code, and all else with "ok", once it may."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.received: list[str] = []
        self.refused: list[str] = []

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


@pytest.mark.parametrize("size", [1, 1000, MAX_HEAD_BYTES - 1, 3 * MAX_HEAD_BYTES])
async def test_a_body_is_no_head_however_it_arrives(size):
    """A request with a large body passes, cut into pieces of any size, and so does the start of the next one."""
    body = b"x" * (4 * MAX_HEAD_BYTES)
    sent = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%bPOST / HTTP/1.1\r\nX: " % (len(body), body)
    protocol, transport = connect(app := RefusingApp())
    for start in range(0, len(sent), size):
        protocol.data_received(sent[start : start + size])
    await settle()
    assert (app.received, transport.closing, transport.written) == (["http.request"], False, [])
    await end(protocol)


BEFORE = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"
UNREADABLE = {
    "a head without end": [b"GET / HTTP/1.1\r\nX: ", *[b"x" * 1000] * (2 * MAX_HEAD_BYTES // 1000)],
    "a head without end, in small pieces": [b"GET / HTTP/1.1\r\nX: ", *[b"x" * 10] * (MAX_HEAD_BYTES // 10 + 100)],
    "no HTTP": [b"\x16\x03\x01\x02", b"more"],
    "no URL": [b"CONNECT a:80 HTTP/1.1\r\n\r\n", b"more"],
}


CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
TOO_MUCH_BESIDE_A_BODY = {
    "trailers": [CHUNKED, b"1\r\na\r\n0\r\n", *[b"a: b\r\n" * 100] * 200],
    "one trailer": [CHUNKED, b"1\r\na\r\n0\r\nX: ", *[b"x" * 1000] * 200],
    "trailers behind a large body": [CHUNKED, b"fffff\r\n" + b"a" * 0xFFFFF + b"\r\n0\r\n", *[b"a: b\r\n" * 100] * 200],
    "an extension": [CHUNKED, b"1;", *[b"x" * 1000] * 200],
    "extensions": [CHUNKED, *[b"1;" + b"x" * 1000 + b"\r\na\r\n"] * 200],
    "empty lines": [b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", *[b"\r\n" * 500] * 200],
}


@pytest.mark.parametrize("name", TOO_MUCH_BESIDE_A_BODY)
async def test_what_is_no_body_is_bounded(name):
    """Wherever a request has it; nothing of it is kept."""
    protocol, transport = connect(app := RefusingApp())
    app.may_answer.set()
    first, *rest = TOO_MUCH_BESIDE_A_BODY[name]
    taken = await feed(protocol, transport, [first])
    taken = await feed(protocol, transport, rest)
    assert b"".join(transport.written).endswith(b"headers_too_large")
    assert transport.ended
    assert len(protocol.headers) <= 1
    assert taken <= 0xFFFFF + MAX_HEAD_BYTES + 2000
    await end(protocol)


@pytest.mark.parametrize("size", [1, 1000, 100_000])
async def test_a_body_may_come_in_chunks_of_a_byte(size):
    """The sizes of its chunks are more than itself. Its trailers are read, and change no header."""
    chunks = b"1\r\nx\r\n" * 50_000 + b"0\r\nX-Request-Id: trailer\r\n\r\n"
    protocol, transport = connect(app := RefusingApp())
    protocol.data_received(CHUNKED)
    for start in range(0, len(chunks), size):
        protocol.data_received(chunks[start : start + size])
    await settle()
    assert (app.received, transport.closing) == (["http.request"], False)
    assert protocol.headers == [(b"transfer-encoding", b"chunked")]
    await end(protocol)


@pytest.mark.parametrize("name", UNREADABLE)
async def test_what_cannot_be_read_is_refused_and_read_no_more(name):
    """The application answers as it answers all else, and the connection is closed."""
    protocol, transport = connect(app := RefusingApp())
    taken = await feed(protocol, transport, UNREADABLE[name])
    head = name.startswith("a head")
    assert b"".join(transport.written).endswith(b"headers_too_large" if head else b"invalid_http")
    assert b"connection: close" in b"".join(transport.written)
    assert transport.ended
    assert not head or MAX_HEAD_BYTES < taken <= MAX_HEAD_BYTES + 1000
    for _ in range(2):
        protocol.data_received(b"more\r\n" * MAX_HEAD_BYTES)  # had been read already
        await settle()
    assert app.refused == ["headers_too_large" if head else "invalid_http"]
    await end(protocol)


@pytest.mark.parametrize("name", UNREADABLE)
async def test_an_answer_that_is_due_goes_before_a_refusal(name):
    """Nothing gets into the midst of it, and nothing is read until it has gone."""
    protocol, transport = connect(app := RefusingApp())
    await feed(protocol, transport, [BEFORE, *UNREADABLE[name]])
    assert (transport.reading, transport.closing, transport.written) == (False, False, [])
    app.may_answer.set()
    await settle()
    answers = b"".join(transport.written).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"400"]
    assert (app.received, transport.ended) == (["http.request"], True)
    await end(protocol)


async def test_a_body_that_cannot_be_read_does_not_overtake():
    """Its refusal takes the place of its request, behind the answer that is due; the application does not see it."""
    protocol, transport = connect(app := RefusingApp())
    await feed(protocol, transport, [BEFORE + b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n"])
    assert (transport.written, app.refused) == ([], [])
    app.may_answer.set()
    await settle()
    answers = b"".join(transport.written).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"400"]
    assert (app.received, app.refused, transport.ended) == (["http.request"], ["invalid_http"], True)
    await end(protocol)


@pytest.mark.parametrize("rest", [b"345", b"3"], ids=["whole", "cut"])
async def test_client_that_ends_its_side_behind_a_part_that_is_not_read_yet(rest):
    """It is not taken for one that has left: what it has sent as a whole is answered, and only that."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        protocol, transport = connect(app := RefusingApp(), ours)
        protocol.data_received(BEFORE + b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n12")
        theirs.shutdown(socket.SHUT_WR)
        assert not protocol.has_left()
        await settle()
        app.may_answer.set()
        protocol.data_received(rest)
        assert protocol.eof_received()
        await settle()
        assert b"".join(transport.written).count(b"HTTP/1.1 200") == len(rest) // 3 + 1
        assert transport.closing
        await end(protocol)


async def test_nothing_is_said_to_a_client_that_has_left():
    """One of HTTP/1.0 cannot be asked whether it waits; its connection is closed, whether its end was read or not."""
    ours, theirs = socket.socketpair()

    async def app(scope, _, send):
        theirs.shutdown(socket.SHUT_WR)
        assert scope["extensions"][HAS_LEFT]()
        await send({"type": "http.response.start", "status": 499, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with ours, theirs:
        protocol, transport = connect(app, ours)
        protocol.data_received(b"GET / HTTP/1.0\r\n\r\n")
        await settle()
        assert (transport.written, transport.closing) == ([], True)
        await end(protocol)


async def test_what_comes_behind_a_last_request_is_not_looked_at():
    """Also if it has begun: nothing is written behind the connection's end. We keep none of HTTP/1.0."""
    protocol, transport = connect(app := RefusingApp())
    app.may_answer.set()
    last = BEFORE.replace(b"1.1\r\n", b"1.0\r\nConnection: keep-alive\r\n")
    await feed(protocol, transport, [last + b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n1"])
    protocol.data_received(b"2345")
    await settle()
    assert b"".join(transport.written).count(b"HTTP/1.1 ") == 1
    assert (app.received, transport.ended) == (["http.request"], True)
    assert not protocol.server_state.tasks
    await end(protocol)


async def test_the_rest_of_a_refused_body_is_read_in_turns():
    """A socket that always has more of it does not keep the event loop from the others."""
    protocol, transport = connect(app := RefusingApp())
    await feed(protocol, transport, [b"POST / HTTP/2.0\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000)])
    assert (app.refused, transport.ended) == (["invalid_http"], True)
    for _ in range(3):
        assert transport.reading
        protocol.data_received(bytes(1000))
        assert not transport.reading
        while not transport.reading:  # noqa: ASYNC110 - the protocol's timer
            await asyncio.sleep(0.01)
    await end(protocol)


async def test_a_body_that_cannot_be_read_ends_its_request():
    """It counts as one whose client left; the answer is the reason."""
    protocol, transport = connect(app := RefusingApp())
    app.may_answer.set()
    await feed(
        protocol, transport, [b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", b"no size\r\n"]
    )
    answers = b"".join(transport.written).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"400"]
    assert (app.received, transport.ended) == (["http.disconnect"], True)
    await end(protocol)


async def test_heads_that_come_too_late():
    """A connection without a request is closed without a word; a head that has begun is refused, also a second one."""

    async def outcome(*pieces):
        protocol, transport = connect(app := RefusingApp(), head_timeout=0.05)
        app.may_answer.set()
        await feed(protocol, transport, pieces)
        while not (transport.closing or transport.ended):  # noqa: ASYNC110 - the protocol's timer
            await asyncio.sleep(0.01)
        await settle()
        answers = b"".join(transport.written).split(b"HTTP/1.1 ")[1:]
        await end(protocol)
        return [answer[:3] for answer in answers], b"request_timeout" in b"".join(transport.written)

    assert await outcome() == ([], False)
    assert await outcome(b"GET / HT", b"TP/1.1\r\n") == ([b"400"], True)
    assert await outcome(b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n") == ([b"200", b"400"], True)


async def test_a_head_that_has_come_is_not_late():
    """However long its answer, or the next request, takes."""
    protocol, transport = connect(app := RefusingApp(), head_timeout=0.01)
    await feed(protocol, transport, [b"GET / HTTP/1.1\r\n\r\n"])
    await asyncio.sleep(0.05)
    assert not transport.closing
    app.may_answer.set()
    await settle()
    await asyncio.sleep(0.05)
    assert not transport.closing
    await end(protocol)


@pytest.mark.parametrize("comes", [True, False])
async def test_the_time_of_a_head_that_nobody_reads_begins_anew(comes):
    """Behind a request that waits for its turn nothing is read, so that its sender cannot be blamed until then."""
    protocol, transport = connect(app := RefusingApp(), head_timeout=0.01)
    await feed(protocol, transport, [BEFORE, BEFORE + b"GET / HTTP/1.1\r\n"])
    assert not transport.reading
    await asyncio.sleep(0.05)
    assert app.refused == []
    if comes:
        protocol._head_timeout = 60.0  # noqa: SLF001 - however slow this machine is
    app.may_answer.set()
    await settle()
    if comes:
        protocol.data_received(b"\r\n")
        await settle()
    async with asyncio.timeout(60):
        while not (comes or transport.closing):  # noqa: ASYNC110 - the protocol's timer
            await asyncio.sleep(0.01)
    answers = b"".join(transport.written).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"200", b"200" if comes else b"400"]
    assert app.refused == ([] if comes else ["request_timeout"])
    await end(protocol)
