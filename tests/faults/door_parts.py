"""What the tests of the three ways into a server share: TCP, TLS and a Unix socket, each as its clients see it."""

from __future__ import annotations

import contextlib
import importlib
import json
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import openai
import psutil

from tests.faults.faults_parts import Held
from tests.faults.resume_parts import RESET
from tests.raw_client import COMPLETIONS, limit_receive_buffer, request_bytes
from tests.server.server_parts import PATIENCE, counters

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import BufferedReader

    from tests.conftest import Server

WAYS = ("tcp", "tls", "uds")
SYNTHETIC = ("--model", "synthetic", "--synthetic-step-ms", "1")
LONG: dict[str, Any] = {"prompt": "long", "max_tokens": 5000, "stream": True}


class Answer(NamedTuple):
    """A response, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def events(self) -> list[Any]:
        """The data of each event of a stream: parsed JSON, or the string [DONE]. Comments are left out."""
        lines = [line.removeprefix("data: ") for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return ["[DONE]" if line == "[DONE]" else json.loads(line) for line in lines]


class Door(NamedTuple):
    """One way into one server.

    Args:
        server: is there.
        path: of its Unix socket; "" for a port.
        trust: what a client of TLS trusts; None without TLS.
    """

    server: Server
    path: str = ""
    trust: ssl.SSLContext | None = None

    def carrier(self, receive_buffer: int | None = None) -> socket.socket:
        """A connection without TLS, which fails a test that waits for too long."""
        sock = socket.socket(socket.AF_UNIX if self.path else socket.AF_INET)
        sock.settimeout(PATIENCE)
        if receive_buffer is not None and not self.path:  # a Unix socket's receiver has no buffer of its own
            limit_receive_buffer(sock, receive_buffer)
        try:
            sock.connect(self.path or self.server.address)
        except OSError:
            sock.close()
            raise
        return sock

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        """A connection that takes requests. The end of TLS without its own word for that is an error."""
        carrier = self.carrier(receive_buffer)
        if self.trust is None:
            return carrier
        return self.trust.wrap_socket(carrier, server_hostname="localhost", suppress_ragged_eofs=False)

    def client(self) -> httpx.Client:
        """An HTTP client of the server."""
        transport = httpx.HTTPTransport(uds=self.path or None, verify=self.trust or False)
        return httpx.Client(transport=transport, base_url=self._url, timeout=PATIENCE)

    def openai(self) -> openai.OpenAI:
        """The OpenAI client of the server; its HTTP library is httpx or a successor."""
        library = importlib.import_module(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])
        transport = library.HTTPTransport(uds=self.path or None, verify=self.trust or False)
        http_client = openai.DefaultHttpxClient(transport=transport)
        return openai.OpenAI(base_url=f"{self._url}/v1", api_key="-", http_client=http_client, max_retries=0)

    def held(self) -> Held:
        """What the server holds, now, without the connection that asks, which both sides have closed."""
        with self.connect() as sock:
            sock.sendall(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            body = read_to_end(sock).partition(b"\r\n\r\n")[2]
            if isinstance(sock, ssl.SSLSocket):
                with sock.unwrap() as carrier:
                    assert carrier.recv(1) == b""
        return Held(json.loads(body)["rings_in_use"], psutil.Process(self.server.pid).num_fds())

    def until_held(self, wanted: Held) -> None:
        """Wait until the server holds exactly this."""
        wait_until(lambda: self.held() == wanted)

    def until_rings(self, number: int) -> None:
        """Wait until this many rings are in use."""
        wait_until(lambda: self.held().rings == number)

    def until_cancelled(self, number: int) -> None:
        """Wait until so many requests have been cancelled since the server started."""
        wait_until(lambda: counters(self.server)["cancels"] >= number)

    @property
    def _url(self) -> str:
        return "http://localhost" if self.path else self.server.url


def occupy(stack: contextlib.ExitStack, door: Door) -> socket.socket:
    """A stream whose first token has come; it leaves no place to others where one sequence runs at a time."""
    occupant = stack.enter_context(door.connect())
    occupant.sendall(request_bytes(COMPLETIONS, LONG))
    read_until(occupant, b'"text"')
    return occupant


def refusal_of(start_server: Callable[..., Server], *options: str) -> str:
    """The one sentence of a server that does not start."""
    with start_server(*SYNTHETIC, *options, until=None) as server:
        assert server.wait() == 2
        assert server.process.stdout is not None
        assert server.process.stdout.read() == ""
        log = server.log.read_text()
    assert "Traceback" not in log
    assert len(log.splitlines()) == 1
    return log


def wait_until(holds: Callable[[], bool]) -> None:
    """Return when it holds; fail the test if it never does."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def read_answer(file: BufferedReader) -> Answer:
    """The next response of a connection, which stays open; interim ones are left out."""
    while (line := file.readline()).startswith(b"HTTP/1.1 100 "):
        assert file.readline() == b"\r\n"
    status, headers = int(line.split()[1]), {}
    while (line := file.readline()) != b"\r\n":
        name, _, value = line.decode().strip().lower().partition(": ")
        headers[name] = value
    if "content-length" in headers:
        return Answer(status, headers, file.read(int(headers["content-length"])))
    if headers.get("transfer-encoding") != "chunked":
        return Answer(status, headers, file.read())
    body = b""
    while size := int(file.readline(), 16):
        body += file.read(size)
        assert file.readline() == b"\r\n"
    assert file.readline() == b"\r\n"
    return Answer(status, headers, body)


def read_to_end(sock: socket.socket) -> bytes:
    """What comes until the server ends its side."""
    received = b""
    while part := sock.recv(65536):
        received += part
    return received


def read_until(sock: socket.socket, words: bytes) -> bytes:
    """What comes, up to these words and perhaps more."""
    received = b""
    while words not in received:
        part = sock.recv(65536)
        assert part, received
        received += part
    return received


def send_until_closed(sock: socket.socket, piece: bytes, most: int) -> int:
    """Send this again and again, until the server has closed the connection or `most` bytes are sent; their number."""
    sent = 0
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while sent < most:
            sock.sendall(piece)
            sent += len(piece)
    return sent


def leave(sock: socket.socket, how: str) -> None:
    """Close a connection: politely, with a reset, or with the end of TLS, behind which the socket stays open."""
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    if how == "end of TLS":
        assert isinstance(sock, ssl.SSLSocket)
        with contextlib.suppress(OSError):  # an answer is on its way
            sock.unwrap()
    else:
        sock.close()
