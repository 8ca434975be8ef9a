"""What a request has beside its body, without end and without a key: bounded before it is looked at."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.faults.faults_parts import memory_kb

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

MIB = 2**20
CHUNKED = b"Host: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
FLOODS = {
    "trailers": (b"0\r\n", b"a:b\r\n" * 13_000),
    "one trailer": (b"0\r\nX-A: ", b"a" * 65_536),
    "an extension": (b"1;", b"a" * 65_536),
    "extensions": (b"", (b"1;" + b"a" * 1000 + b"\r\nx\r\n") * 60),
}
REQUESTS = {
    "an open path": b"GET /health HTTP/1.1\r\n",
    "no key": b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\n",
    "a key": b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nx-api-key: secret\r\n",
}


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Server]) -> Server:
    """One that needs a key."""
    return start_server("--model", "synthetic", "--api-key", "secret")


def cpu_seconds(server: Server) -> float:
    """Of the server process."""
    return sum(map(int, Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / 100


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("flood", FLOODS)
def test_flood_of_framing(server: Server, request_name: str, flood: str) -> None:
    """64 MiB of it: the connection is closed after a fraction, and costs neither memory nor time."""
    first, piece = FLOODS[flood]
    httpx.get(server.url + "/health")
    memory, cpu = memory_kb(server), cpu_seconds(server)
    sent = 0
    with socket.create_connection(server.address, timeout=60) as client:
        client.sendall(REQUESTS[request_name] + CHUNKED + first)
        with contextlib.suppress(ConnectionError):
            while sent < 64 * MIB:
                client.sendall(piece)
                sent += len(piece)
        received = b""
        with contextlib.suppress(ConnectionError):
            while part := client.recv(65536):
                received += part
    assert sent < 16 * MIB
    assert received == b"" or b"HTTP/1.1 431 " in received or b"HTTP/1.1 401 " in received or b" 200 OK" in received
    assert httpx.get(server.url + "/health").status_code == 200
    assert memory_kb(server) - memory < 8 * 1024
    assert cpu_seconds(server) - cpu < 1.0
