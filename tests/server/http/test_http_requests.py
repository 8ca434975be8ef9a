"""The protocol class on a recorded transport: what is a request, what is refused, and in which order answers leave."""

import asyncio
import socket

import pytest

from rbee.server.http.protocol import MAX_HEAD_BYTES
from rbee.server.http.refusals import STATE
from rbee.server.http.writer import HAS_LEFT, writer_of
from tests.server.http.protocol_parts import RefusingApp, connect, end, feed, settle

pytestmark = pytest.mark.anyio


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


CHUNKED_BODY = CHUNKED + b"4\r\nbody\r\n0\r\n\r\n"
OTHER_LINE = b"POST / RTSP/1.0\r\n"
WITH_OTHER_LINES = (  # where they are text: a body in one piece or in chunks, a header, a trailer, a target
    b"POST / HTTP/1.1\r\nX: %b\r\nContent-Length: %d\r\n\r\n%b"
    b"POST /? HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n11\r\n%b\r\n0\r\nX: %b\r\n"
    b"POST /RTSP/ICE/ HTTP/1.1\r\nX: y\r\n\r\n"
) % (OTHER_LINE.strip(), 4 * len(OTHER_LINE), 4 * OTHER_LINE, OTHER_LINE, OTHER_LINE)
OTHER_REQUESTS = {
    "first": (b"", b"GET / RTSP/1.0\r\n\r\n"),
    "behind empty lines": (b"\r\n\r\n", b"GET /  RTSP/1.0\r\nHost: a\r\n\r\n"),
    "behind a body": (BEFORE, b"GET / RTSP/1.0\r\n\r\n"),
    "behind bodies": (2 * BEFORE + 2 * CHUNKED_BODY, b"GET / RTSP/1.0\r\n\r\n"),
    "behind others": (WITH_OTHER_LINES, b"OPTIONS * RTSP/1.1\r\n\r\n"),
    "RTSP's own method": (WITH_OTHER_LINES, b"GET_PARAMETER rtsp://a/b RTSP/1.0\r\n\r\n"),
    "ICE": (WITH_OTHER_LINES, b"SOURCE / ICE/1.0\r\n\r\n"),
}


@pytest.mark.parametrize("size", [*range(1, 25), 10_000])
@pytest.mark.parametrize("name", OTHER_REQUESTS)
async def test_a_request_of_another_protocol_is_refused_wherever_it_is_cut(name, size):
    """The parser reads three protocols alike. Requests before it are answered, and the text in them is theirs."""
    before, other = OTHER_REQUESTS[name]
    protocol, transport = connect(app := RefusingApp())
    app.may_answer.set()
    sent = before + other
    for start in range(0, len(sent), size):
        protocol.data_received(sent[start : start + size])
        await settle()
    assert (len(app.received), app.refused) == (before.count(b" HTTP/1.1"), ["invalid_http"])
    assert "It is one of RTSP or ICE" in app.reasons[0]
    assert transport.ended
    await end(protocol)


@pytest.mark.parametrize("framing", ["a length", "chunks"])
async def test_a_body_of_request_lines_of_another_protocol(framing):
    """A log of such a server is a text like others, with empty lines too, however large it is."""
    protocol, transport = connect(app := RefusingApp())
    app.may_answer.set()
    body = b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n" * 30_000
    if framing == "chunks":
        sent = b"%b%x\r\n%b\r\n0\r\n\r\n" % (CHUNKED, len(body), body)
    else:
        sent = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    await feed(protocol, transport, [sent[start : start + 100_003] for start in range(0, len(sent), 100_003)])
    assert (app.received, app.refused) == (["http.request"], [])
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


async def test_a_stream_whose_place_a_refusal_has_taken_writes_nothing():
    """A route that needs no body does not wait for it, and may begin when what follows is no body."""

    class Silent:
        def __getattr__(self, name):
            return lambda: None

    refusing = RefusingApp()

    async def app(scope, receive, send):
        if STATE in scope["state"]:
            await refusing(scope, receive, send)
            return
        writer = writer_of(scope, receive, send)
        await writer.start([(b"content-type", b"text/event-stream")])
        writer.open(Silent())
        writer.write(b"data: x")
        assert writer.closed
        await writer.finish()

    protocol, transport = connect(app)
    await feed(protocol, transport, [b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n*"])
    written = b"".join(transport.written)
    assert written.startswith(b"HTTP/1.1 400")
    assert (written.count(b"HTTP/1.1 "), written.count(b"data: x")) == (1, 0)
    assert refusing.refused == ["invalid_http"]
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

    async def outcome(*pieces, came=b""):
        protocol, transport = connect(app := RefusingApp(), head_timeout=0.05, came=came)
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
    assert await outcome(b"\r\n") == ([b"400"], True)
    assert await outcome(came=b"\r\n") == ([b"400"], True)
    assert await outcome(b"GET / HTTP/1.1\r\n\r\n", b"\r\n") == ([b"200", b"400"], True)


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
