"""More connections than there may be: those that wait for their clients give way, and probes are answered."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.faults.door_parts import wait_until
from tests.raw_client import COMPLETIONS, request_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Server

LIMIT = 128  # descriptors, of which --max-requests 64 needs all
PLACES = 64
SYNTHETIC = ["--model", "synthetic", "--max-requests", "64"]
SILENT = b""
HALF_A_HEAD = b"GET /health HTTP/1.1\r\nHost: local"
HALF_A_BODY = request_bytes(COMPLETIONS, {"prompt": "x" * 100})[:-50]
IDLE = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
SHORT = request_bytes(COMPLETIONS, {"prompt": "x", "max_tokens": 1})
ENDLESS = request_bytes(COMPLETIONS, {"prompt": "x", "max_tokens": 8000, "stream": True})


@pytest.fixture
def few_files(launch: Callable[..., Server]) -> Iterator[Server]:
    """A server with the fewest descriptors that it takes."""
    command = f"ulimit -n {LIMIT}; exec {sys.executable} -m rbee.cli serve --port 0 " + " ".join(SYNTHETIC)
    with launch(["bash", "-c", command]) as server:
        yield server


@pytest.fixture
def few_places(start_server: Callable[..., Server]) -> Iterator[Server]:
    """A server with the same bound as an option."""
    with start_server(*SYNTHETIC, "--max-connections", str(PLACES)) as server:
        yield server


@pytest.fixture(params=["few_files", "few_places"])
def server(request: pytest.FixtureRequest) -> Server:
    """Either."""
    server: Server = request.getfixturevalue(request.param)
    return server


@contextlib.contextmanager
def connections(server: Server, number: int, sent: bytes, begin: bytes = b"") -> Iterator[list[socket.socket]]:
    """Within the block there are so many that have sent this; with `begin` each has got an answer that begins so."""
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(number):
            sock = stack.enter_context(socket.create_connection(server.address, timeout=60))
            sock.sendall(sent)
            if begin:
                assert sock.recv(len(begin), socket.MSG_WAITALL) == begin
            sockets.append(sock)
        yield sockets


def is_open(sock: socket.socket) -> bool:
    """Whether the server has not closed it; what was sent is read first."""
    sock.setblocking(False)
    try:
        while sock.recv(65536):
            pass
    except BlockingIOError:
        return True
    except ConnectionError:
        pass
    finally:
        sock.settimeout(60)
    return False


def health(server: Server) -> tuple[int, str]:
    """Status and Connection header, on a new connection."""
    answer = httpx.get(f"{server.url}/health")
    return answer.status_code, answer.headers["connection"]


def holds_no_request(server: Server) -> bool:
    """The engine has left those of clients that have gone, and there is room for the connection that asks."""
    return bool(httpx.get(f"{server.url}/ready").json().get("rings_in_use") == 0)


@pytest.mark.parametrize("sent", [SILENT, HALF_A_HEAD, HALF_A_BODY, IDLE], ids=["silent", "head", "body", "idle"])
def test_who_sends_nothing_keeps_nobody_out(server, sent):
    """The oldest of them give way; a stream, which was there before, does not."""
    with (
        connections(server, 1, ENDLESS, b"HTTP/1.1 200") as [stream],
        connections(server, 300, sent, b"HTTP/1.1 200" if sent is IDLE else b"") as waiting,
    ):
        for _ in range(PLACES + 10):
            with connections(server, 1, SHORT, b"HTTP/1.1 200"):
                pass
        assert is_open(stream)
        assert not is_open(waiting[0])
    assert "get 503" not in server.log.read_text()


def test_the_one_that_has_waited_longest_gives_way(few_places):
    """Each answer makes a connection the newest."""
    with connections(few_places, PLACES - 1, IDLE, b"HTTP/1.1 200") as idle:
        first = idle[0]
        is_open(first)
        first.sendall(IDLE)
        assert first.recv(12) == b"HTTP/1.1 200"
        with connections(few_places, 2, IDLE, b"HTTP/1.1 200"):
            assert [is_open(sock) for sock in idle[:3]] == [True, False, True]


def test_where_all_are_being_answered_the_others_get_the_reason(server):
    """But for probes; each is closed after its answer."""
    with connections(server, PLACES, ENDLESS, b"HTTP/1.1 200") as streams:
        for _ in range(50):
            assert health(server) == (200, "close")
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert refused.headers["connection"] == "close"
        assert refused.json()["error"]["code"] == "too_many_connections"
        name = refused.headers["x-request-id"]
        server.wait_for_log(f"id={name} method=POST path=/v1/completions status=503 code=too_many_connections")
        with connections(server, 100, SILENT):
            assert health(server) == (200, "close")
        assert all(map(is_open, streams))


def test_the_log_has_one_line_per_burst(server, request):
    """With the limit and the remedy."""
    remedy = "ulimit -n" if "few_files" in request.node.name else "--max-connections"
    for burst in (1, 2):
        with connections(server, PLACES, ENDLESS, b"HTTP/1.1 200"):
            for _ in range(3):
                assert health(server) == (200, "close")
        wait_until(lambda: holds_no_request(server))
        lines = [line for line in server.log.read_text().splitlines() if "get 503" in line]
        assert len(lines) == burst
        assert f"{PLACES} connections are open" in lines[-1]
        assert remedy in lines[-1]


def test_as_many_connections_as_requests_are_no_flood(few_files):
    """Each of the requests that the options promise can be sent on a connection of its own."""
    with connections(few_files, PLACES - 1, ENDLESS, b"HTTP/1.1 200"):
        assert health(few_files) == (200, "keep-alive")
    assert "get 503" not in few_files.log.read_text()


def test_an_engine_that_dies_meanwhile_is_started_again(few_files):
    """There are descriptors left for it."""
    with httpx.Client(base_url=few_files.url) as early:
        assert early.get("/ready").json()["ready"] is True
        with (
            connections(few_files, PLACES - 1, ENDLESS, b"HTTP/1.1 200"),
            connections(few_files, 300, SILENT),
        ):
            engine = few_files.engine
            engine.send_signal(signal.SIGKILL)
            engine.wait()
            while not httpx.get(f"{few_files.url}/health").is_success:
                pass
            while not (ready := httpx.get(f"{few_files.url}/ready").json()).get("ready"):
                assert "error" in ready or ready["state"] in ("dead", "starting", "loading")
            done = httpx.post(f"{few_files.url}/v1/completions", json={"prompt": "x", "max_tokens": 3})
            assert done.status_code == 200
    assert few_files.stop() == 0


def test_connections_of_one_address(start_server):
    """They give way to each other, and leave the places of others alone."""
    with start_server(*SYNTHETIC, "--host", "127.0.0.1", "--max-connections-per-address", "4") as server:

        def connect(address: str, sent: bytes) -> socket.socket:
            sock = socket.create_connection(server.address, timeout=60, source_address=(address, 0))
            sock.sendall(sent)
            assert sock.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200"
            return sock

        with contextlib.ExitStack() as stack:
            others = [stack.enter_context(connect("127.0.0.3", IDLE)) for _ in range(4)]
            idle = [stack.enter_context(connect("127.0.0.2", IDLE)) for _ in range(4)]
            streams = [stack.enter_context(connect("127.0.0.2", ENDLESS)) for _ in range(4)]
            assert not any(map(is_open, idle))
            assert all(map(is_open, [*streams, *others]))
            with socket.create_connection(server.address, timeout=60, source_address=("127.0.0.2", 0)) as fifth:
                fifth.sendall(IDLE.replace(b"/health", b"/v1/models"))
                assert fifth.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 503"
            assert health(server) == (200, "keep-alive")
            with socket.create_connection(server.address, timeout=60, source_address=("127.0.0.2", 0)) as sixth:
                sixth.sendall(IDLE.replace(b"/health", b"/v1/models"))
                assert sixth.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 503"
        told = "4 connections of 127.0.0.2 are open (--max-connections-per-address)"
        server.wait_for_log(told)
        assert server.log.read_text().count(told) == 1, "others that come and go are no end of it"
