"""Connections before the head of their first request is there, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import socket
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.server import ServerState

from rbee.server.http import refusals
from rbee.server.http.acceptor import Newcomer, is_beginning
from rbee.server.http.connections import BoundedProtocol, Connections
from rbee.server.http.listener import HttpServer, listen
from tests.server.http.protocol_parts import RecordingTransport
from tests.server.server_parts import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.types import ASGIApp, Receive, Scope, Send

pytestmark = pytest.mark.anyio

HEAD = b"POST /v1/completions?x=1 HTTP/1.1\r\nHost: localhost:80\r\nContent-Length: 5\r\nX-Empty:\r\n\r\n"
BODY = b"hello"
HALF = HEAD[:60]
ANSWER = b"HTTP/1.1 200 OK"


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both event loops that uvicorn runs on."""
    return "asyncio", {"use_uvloop": request.param}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the request's body, and to what the protocol refuses with the code."""
    refusal = scope["state"].get(refusals.STATE)
    body = b""
    more = refusal is None
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    status = 200 if refusal is None else 400
    text = body if refusal is None else refusal.code.encode()
    length = str(len(text)).encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": text})


class Serving:
    """Our HTTP server in this process; it accepts within the block of `accepting`, so that a backlog can be filled."""

    def __init__(self, app: ASGIApp, sock: socket.socket, places: Connections, head_timeout: float) -> None:
        self._sock = sock
        self.address: tuple[str, int] = sock.getsockname()
        self.http = HttpServer(app, connections=places, head_timeout=head_timeout)

    @contextlib.asynccontextmanager
    async def accepting(self) -> AsyncIterator[None]:
        """From now on, and until the end of the block."""
        serving = asyncio.ensure_future(self.http.serve(sockets=[self._sock]))
        try:
            yield
        finally:
            self.http.should_exit = True
            await serving

    @property
    def protocols(self) -> int:
        """Connections that have one."""
        return len(self.http.server_state.connections)


@contextlib.contextmanager
def server(places: Connections | None = None, head_timeout: float = PATIENCE, app: ASGIApp = echo) -> Iterator[Serving]:
    """One that listens."""
    with listen("127.0.0.1", 0) as sock:
        yield Serving(app, sock, Connections() if places is None else places, head_timeout)


class Client:
    """A connection to it; to be made before or after it accepts."""

    def __init__(self, stack: contextlib.ExitStack, serving: Serving, *sent: bytes) -> None:
        self.sock = stack.enter_context(socket.create_connection(serving.address))
        for piece in sent:
            self.sock.sendall(piece)
        self.sock.setblocking(False)

    async def send(self, data: bytes) -> None:
        """All of it."""
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def read(self, until: bytes = b"") -> bytes:
        """What comes, until it ends with this, or the server closes the connection."""
        got = b""
        with contextlib.suppress(ConnectionError):
            while piece := await asyncio.wait_for(
                asyncio.get_running_loop().sock_recv(self.sock, 65536), timeout=PATIENCE
            ):
                got += piece
                if until and got.endswith(until):
                    break
        return got


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """For the clients."""
    with contextlib.ExitStack() as stack:
        yield stack


async def test_whole_head_passes_those_that_came_before_with_less(stack):
    """They have neither transport nor protocol until theirs is whole; the body may be in the same packet."""
    with server() as serving:
        before = [Client(stack, serving, *sent) for sent in [(), (HALF,)] * 200]
        whole = Client(stack, serving, HEAD + BODY)
        async with serving.accepting():
            assert (await whole.read(BODY)).startswith(ANSWER)
            assert serving.protocols == 1
            for client, rest in zip(before[-2:], [HEAD + BODY, HEAD[len(HALF) :] + BODY], strict=True):
                await client.send(rest)
                assert (await client.read(BODY)).startswith(ANSWER)
            assert serving.protocols == 3


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_head_in_pieces(stack, size):
    """Nothing of it is lost or repeated, nor of what follows."""
    conversation = HEAD + BODY + HEAD + b"again"
    with server() as serving:
        async with serving.accepting():
            client = Client(stack, serving)
            for start in range(0, len(conversation), size):
                await client.send(conversation[start : start + size])
                await asyncio.sleep(0)
            assert (await client.read(b"again")).count(ANSWER) == 2


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"get ",
        b"GET /\nHost: x\n",
        b"GET / HTTP/1.1\r\nHost: x\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n",
        b"GET / HTTP/1.1\r\nHost: x\0\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"Host: x\r\n",
    ],
)
async def test_what_is_no_beginning_of_a_head_is_refused_at_once(stack, sent):
    """It does not wait for more, which would not make it better."""
    with server() as serving:
        async with serving.accepting():
            assert b"invalid_http" in await Client(stack, serving, sent).read()


async def test_head_of_many_bytes_is_not_held(stack):
    """The protocol bounds it."""
    with server() as serving:
        async with serving.accepting():
            client = Client(stack, serving, HEAD[:-2] + b"X: " + b"x" * 100_000)
            assert b"headers_too_large" in await client.read()


async def test_head_without_end_is_told_so_and_silence_is_closed(stack):
    """Both after the same time; more connections than are looked at in one turn."""
    with server(head_timeout=0.1) as serving:
        clients = [Client(stack, serving, *sent) for sent in [(), (HALF,)] * 50]
        async with serving.accepting():
            answers = [await client.read() for client in clients]
    assert answers[::2] == [b""] * 50
    assert all(b"request_timeout" in answer for answer in answers[1::2])


async def test_one_that_ends_before_its_head(stack):
    """Its place is free again: a connection that says nothing, a reset, and half a head with an end."""
    places = Connections(3)
    with server(places) as serving:
        clients = [Client(stack, serving, *sent) for sent in [(), (HALF,), (HALF,)]]
        clients[0].sock.shutdown(socket.SHUT_WR)
        clients[1].sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        clients[1].sock.close()
        clients[2].sock.shutdown(socket.SHUT_WR)
        async with serving.accepting():
            assert await clients[0].read() == b""
            assert await clients[2].read() == b""
            while len(places):  # noqa: ASYNC110 - the reset one comes to its end
                await asyncio.sleep(0)
            held = [Client(stack, serving, HALF) for _ in range(3)]
            for client in held:
                await client.send(HEAD[len(HALF) :] + BODY)
                assert (await client.read(BODY)).startswith(ANSWER)


async def test_newcomers_give_way_the_oldest_first(stack):
    """Those that wait for their heads do, like all that wait."""
    with server(Connections(10)) as serving:
        clients = [Client(stack, serving, HALF) for _ in range(15)]
        async with serving.accepting():
            assert [await client.read() for client in clients[:5]] == [b""] * 5
            for client in clients[5:]:
                await client.send(HEAD[len(HALF) :] + BODY)
                assert (await client.read(BODY)).startswith(ANSWER)


async def test_one_that_gives_way_while_its_protocol_is_made(stack):
    """It is closed; its place is the other's."""
    with server(Connections(1)) as serving:
        clients = [Client(stack, serving, HEAD + BODY) for _ in range(2)]  # both are accepted in one turn
        async with serving.accepting():
            assert await clients[0].read() == b""
            assert (await clients[1].read(BODY)).startswith(ANSWER)
            assert serving.protocols == 1


@pytest.fixture
def no_descriptor() -> Iterator[contextlib.ExitStack]:
    """Within the block this process can open none; its end frees some."""
    with contextlib.ExitStack() as stack:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        yield stack


def use_up_descriptors(stack: contextlib.ExitStack) -> None:
    """Leave this process none of 300, of which `Connections` keeps 64."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with contextlib.suppress(OSError):
        while True:
            stack.callback(os.close, os.dup(0))


async def test_without_a_descriptor_the_one_that_waits_gives_way(stack, no_descriptor):
    """So that the next one is answered."""
    with server() as serving:
        async with serving.accepting():
            first = Client(stack, serving, HALF)
            second = Client(stack, serving, HEAD + BODY)
            await second.read(BODY)  # the first has been accepted before it
            third = Client(stack, serving, HEAD + BODY)
            use_up_descriptors(no_descriptor)
            assert (await third.read(BODY)).startswith(ANSWER)
            assert await first.read() == b""
            await second.send(HEAD + BODY)
            assert (await second.read(BODY)).startswith(ANSWER)


async def test_without_a_descriptor_and_one_that_waits_it_comes_back(stack, no_descriptor, caplog):
    """It says so in the log, and accepts when there are some again."""
    with server() as serving:
        async with serving.accepting():
            await Client(stack, serving, HEAD.replace(b"X-Empty:", b"Connection: close") + BODY).read()
            while serving.protocols:  # noqa: ASYNC110 - it is about to be closed
                await asyncio.sleep(0)
            client = Client(stack, serving, HEAD + BODY)
            use_up_descriptors(no_descriptor)
            while "No connection can be accepted: Too many open files." not in caplog.text:  # noqa: ASYNC110 - a log
                await asyncio.sleep(0.001)
            no_descriptor.close()
            assert (await client.read(BODY)).startswith(ANSWER)


async def test_end_of_the_server_closes_newcomers(stack):
    """At once."""
    with server() as serving:
        held = [Client(stack, serving, *sent) for sent in [(), (HALF,)]]
        async with serving.accepting():
            await Client(stack, serving, HEAD + BODY).read(BODY)
        assert [await client.read() for client in held] == [b"", b""]


async def test_nothing_is_read_behind_a_request_that_waits(stack):
    """The second request of the first packet waits for the first one's answer, and what follows waits in the kernel."""
    may_answer = asyncio.Event()

    async def patient(scope, receive, send):
        await may_answer.wait()
        await echo(scope, receive, send)

    with server(app=patient) as serving:
        async with serving.accepting():
            client = Client(stack, serving, (HEAD + BODY) * 2)
            while not serving.protocols:  # noqa: ASYNC110 - it is about to come
                await asyncio.sleep(0)
            [connection] = serving.http.server_state.connections
            for _ in range(20):
                await asyncio.sleep(0)
            assert not connection.transport.is_reading()
            may_answer.set()
            answers = b""
            while answers.count(BODY) < 2:
                answers += await client.read(BODY)
            assert connection.transport.is_reading()


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"])
@pytest.mark.parametrize("kind", ["silent", "half a head", "answered", "kept", "reset", "refused", "no request"])
async def test_a_connection_leaves_no_cycle(stack, kind):
    """It is freed when it ends, and not when Python's collector looks at all objects next, or a timer is over."""
    refused = b"POST / HTTP/2.0\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100
    last = HEAD.replace(b"X-Empty:", b"Connection: close") + BODY
    kinds = {
        "silent": (b"", False),
        "half a head": (HALF, False),
        "answered": (last, True),
        "kept": (HEAD + BODY, True),
        "reset": (HEAD + BODY, True),
        "refused": (refused, True),
        "no request": (b"garbage\r\n\r\n", True),
    }
    sent, is_answered = kinds[kind]
    with server() as serving:
        async with serving.accepting():
            await Client(stack, serving, last).read()
            gc.collect()
            gc.disable()
            try:
                for _ in range(20):
                    with contextlib.ExitStack() as ended:
                        client = Client(ended, serving, sent)
                        if is_answered:
                            await client.read(BODY if kind in {"kept", "reset"} else b"")
                        if kind == "reset":
                            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                # Each is accepted, and its end read, before this one is answered.
                await Client(stack, serving, last).read()
                while serving.protocols:  # noqa: ASYNC110 - it is about to be closed
                    await asyncio.sleep(0)
                await asyncio.sleep(0)
                assert gc.collect() == 0
                # Not isinstance: it would also ask each object in the process for its __class__, and some warn.
                assert not any(issubclass(type(thing), BoundedProtocol) for thing in gc.get_objects())
            finally:
                gc.enable()


TOKEN = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1).map(str.encode)
VALUE = st.binary(max_size=20).map(lambda value: bytes(byte for byte in value if byte not in b"\r\n\0"))
TARGET = st.text([chr(code) for code in range(0x21, 0x7F)], min_size=1).map(str.encode)


@given(st.text("ABCXYZ", min_size=1, max_size=16), TARGET, st.lists(st.tuples(TOKEN, VALUE), max_size=4), st.data())
def test_each_beginning_of_a_head_is_held_and_the_whole_goes_on(method, target, fields, data):
    """For any method, target and fields that RFC 9112 allows."""
    lines = [b"%s %s HTTP/1.1" % (method.encode(), target), *(b"%s:%s" % field for field in fields)]
    head = b"\r\n".join([*lines, b"", b""])
    end = data.draw(st.integers(1, len(head) - 1))
    assert is_beginning(head[:end])
    assert not is_beginning(head)


async def test_the_time_of_a_head_counts_from_the_accept():
    """A newcomer that goes on with half a head has no more of it."""
    with socket.socket() as sock:
        acceptor: Any = None  # it is not held any more
        newcomer = Newcomer(acceptor, sock, None, asyncio.get_running_loop().time() - PATIENCE)
        newcomer.data = HALF
        protocol = BoundedProtocol(
            uvicorn.Config(echo, log_config=None),
            ServerState(),
            {},
            newcomer=newcomer,
            places=Connections(),
            head_timeout=PATIENCE,
        )
        transport = RecordingTransport()
        protocol.connection_made(transport)
        while not transport.ended:  # noqa: ASYNC110 - the protocol's timer
            await asyncio.sleep(0)
        assert b"request_timeout" in b"".join(transport.written)
        protocol.connection_lost(None)
