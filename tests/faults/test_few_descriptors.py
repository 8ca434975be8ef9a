"""More connections than file descriptors: the server says so, answers probes, and goes on."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Server

LIMIT = 128  # of which --max-requests 64 needs all
WARNING = "this process may open only 128 files"


@pytest.fixture
def server(launch: Callable[..., Server]) -> Iterator[Server]:
    """With the fewest descriptors that it takes."""
    command = f"ulimit -n {LIMIT}; exec {sys.executable} -m rbee.cli serve --port 0 --model synthetic --max-requests 64"
    with launch(["bash", "-c", command]) as server:
        yield server


@contextlib.contextmanager
def flood(server: Server, connections: int = 300) -> Iterator[None]:
    """Within the block there are connections that ask for nothing."""
    with contextlib.ExitStack() as sockets:
        for _ in range(connections):
            sockets.enter_context(socket.create_connection(server.address))
        httpx.get(f"{server.url}/health")  # was accepted after them
        yield


def until_alone(server: Server) -> None:
    """Wait until the server has no connection."""
    process = psutil.Process(server.pid)
    while any(connection.status != psutil.CONN_LISTEN for connection in process.net_connections("tcp")):
        time.sleep(0.01)


def test_probes_are_answered_and_all_else_gets_the_reason(server):
    """Also on connections that came last; each is closed after its answer."""
    with flood(server):
        for _ in range(50):
            health = httpx.get(f"{server.url}/health")
            assert (health.status_code, health.headers["connection"]) == (200, "close")
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert refused.headers["connection"] == "close"
        assert refused.json()["error"]["code"] == "too_many_connections"
        name = refused.headers["x-request-id"]
        server.wait_for_log(f"id={name} method=POST path=/v1/completions status=503 code=too_many_connections")


def test_the_log_has_one_line_per_burst(server):
    """With the limit and the remedy."""
    for burst in (1, 2):
        with flood(server):
            httpx.get(f"{server.url}/health")
        until_alone(server)
        assert httpx.get(f"{server.url}/v1/models").status_code == 200
        lines = [line for line in server.log.read_text().splitlines() if WARNING in line]
        assert len(lines) == burst
        assert "ulimit -n" in lines[-1]
    assert server.stop() == 0


def test_as_many_connections_as_requests_are_no_flood(server):
    """Each of the requests that the options promise can be sent on a connection of its own."""
    with flood(server, connections=63):
        assert httpx.get(f"{server.url}/v1/models").status_code == 200
    assert WARNING not in server.log.read_text()


def test_an_engine_that_dies_meanwhile_is_started_again(server):
    """There are descriptors left for it."""
    with httpx.Client(base_url=server.url) as early:
        assert early.get("/ready").json()["ready"] is True
        with flood(server):
            engine = server.engine
            engine.send_signal(signal.SIGKILL)
            engine.wait()
            while not (ready := early.get("/ready").json())["ready"]:
                assert ready["state"] in ("dead", "starting", "loading")
            done = early.post("/v1/completions", json={"prompt": "x", "max_tokens": 3})
            assert done.status_code == 200
    assert server.stop() == 0
