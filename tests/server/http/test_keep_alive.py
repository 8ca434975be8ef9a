"""How long idle connections are kept, and who is told."""

import socket

import pytest

from rbee.config import ServerConfig
from tests.raw_client import COMPLETIONS, request_bytes


@pytest.fixture(scope="module")
def hasty_server(start_server):
    """A server that keeps idle connections for a second."""
    return start_server("--model", "synthetic", "--keep-alive-timeout", "1")


def test_default_is_above_that_of_pools():
    """That of aiohttp keeps idle connections for 15 s, nginx's for 60."""
    assert ServerConfig().keep_alive_timeout == 75


@pytest.mark.parametrize("stream", [True, False])
def test_idle_connection_is_announced_and_closed(hasty_server, stream):
    """Each answer says how long, and the connection is closed by the server after that."""
    request = request_bytes(COMPLETIONS, {"prompt": "hi", "max_tokens": 2, "stream": stream})
    with socket.create_connection(hasty_server.address, timeout=60) as client:
        client.sendall(request)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    head = received.partition(b"\r\n\r\n")[0]
    assert b"\r\nconnection: keep-alive" in head
    assert b"\r\nkeep-alive: timeout=1" in head


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.0\r\n\r\n",
        (
            b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 99999999\r\n\r\n"
        ),
    ],
    ids=["asked to close", "HTTP/1.0", "refused without its body"],
)
def test_connection_that_is_closed_announces_nothing(hasty_server, request_):
    """There is nothing to keep."""
    with socket.create_connection(hasty_server.address, timeout=60) as client:
        client.sendall(request_)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    head = received.partition(b"\r\n\r\n")[0]
    assert b"\r\nconnection: close" in head
    assert b"keep-alive" not in head
