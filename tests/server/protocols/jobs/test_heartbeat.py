"""Heartbeats, as a queen gets them."""

from __future__ import annotations

import asyncio
import http.server
import json
import queue
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from rbee import __version__
from rbee.config import Config, EngineConfig, ServerConfig
from rbee.errors import ConfigError
from rbee.server.protocols.jobs.heartbeat import heartbeats, status_of
from rbee.transport import ServerState
from tests.server.protocols.jobs.jobs_parts import SHORT, JobClient
from tests.server.server_parts import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

SYNTHETIC = ["--model", "synthetic", "--synthetic-step-ms", "1"]


class Queen:
    """A receiver of heartbeats, which answers with these statuses, and then with 200."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.url = ""
        self._records: queue.Queue[tuple[str, str | None, Any]] = queue.Queue()

    def take(self, path: str, kind: str | None, body: bytes) -> int:
        """One request; the status of its answer."""
        self._records.put((path, kind, json.loads(body)))
        return self.statuses.pop(0) if self.statuses else 200

    def next(self) -> dict[str, Any]:
        """The next record, which may be waited for."""
        path, kind, record = self._records.get(timeout=PATIENCE)
        assert (path, kind) == ("/v1/worker-heartbeat?from=worker", "application/json")
        assert list(record) == ["worker", "timestamp"]
        assert abs((datetime.now(UTC) - datetime.fromisoformat(record["timestamp"])).total_seconds()) < PATIENCE
        worker: dict[str, Any] = record["worker"]
        return worker

    def until(self, status: str) -> dict[str, Any]:
        """The next record with this status."""
        while (worker := self.next())["status"] != status:
            pass
        return worker


@pytest.fixture
def queen() -> Iterator[Queen]:
    """One on loopback."""
    taken = Queen()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(taken.take(self.path, self.headers["Content-Type"], body))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        taken.url = f"http://127.0.0.1:{server.server_address[1]}/v1/worker-heartbeat?from=worker"
        yield taken
        server.shutdown()
        thread.join()


def test_heartbeats_of_a_server(queen, start_server):
    """What it is, and when it is ready and stops."""
    with start_server(*SYNTHETIC, "--heartbeat-url", queen.url) as server:
        worker = queen.until("ready")
        assert list(worker) == ["id", "model_id", "device", "port", "status", "implementation", "version"]
        assert (worker["model_id"], worker["device"], worker["port"]) == ("synthetic", "cpu", server.address[1])
        assert (worker["implementation"], worker["version"]) == ("rbee", __version__)
        assert worker["id"].endswith(f"-{server.address[1]}")
        assert server.stop() == 0
    assert queen.until("stopped")["id"] == worker["id"]


def test_server_whose_queen_is_not_there(start_server):
    """It serves and stops as ever, and says so in one line."""
    with start_server(*SYNTHETIC, "--heartbeat-url", "http://127.0.0.1:9/") as server:
        assert JobClient(server).run(SHORT)[-1] == "[DONE]"
        assert server.stop() == 0
        assert server.log.read_text().count("--heartbeat-url") == 1


class Engine:
    """A Supervisor without an engine: the test sets what it would say."""

    device = "cpu"
    max_num_seqs = 2

    def __init__(self, state: ServerState, rings_in_use: int = 0, *, leaving: bool = False, restarting: bool = False):
        self.state = state
        self.rings_in_use = rings_in_use
        self.leaving = leaving
        self.restarting = restarting

    @property
    def client(self) -> Any:
        """As a Supervisor has it."""
        return self


@pytest.mark.parametrize(
    ("engine", "status"),
    [
        (Engine(ServerState.STARTING), "starting"),
        (Engine(ServerState.LOADING), "starting"),
        (Engine(ServerState.DEAD, restarting=True), "starting"),
        (Engine(ServerState.DEAD), "stopped"),
        (Engine(ServerState.READY, 1), "ready"),
        (Engine(ServerState.READY, 2), "busy"),
        (Engine(ServerState.READY, leaving=True), "stopped"),
        (Engine(ServerState.DRAINING), "stopped"),
    ],
)
def test_statuses(engine, status):
    """Busy is a worker that would let the next job wait."""
    assert status_of(engine) == status


@pytest.mark.anyio
async def test_outage_is_logged_once(queen, caplog):
    """With its end. The rhythm stays, and every record is a new one."""
    queen.statuses = [500, 503, 500]
    supervisor: Any = Engine(ServerState.READY)
    async with heartbeats(queen.url, supervisor, "m", 1, interval=0.01):
        for _ in range(5):
            assert (await asyncio.to_thread(queen.next))["status"] == "ready"
    assert queen.until("stopped")["port"] == 1
    said = [record.message.replace(queen.url, "URL") for record in caplog.records if "heartbeats" in record.message]
    assert said == [
        "heartbeats to URL (--heartbeat-url) fail: the answer has the status 500",
        "heartbeats to URL arrive again",
    ]


@pytest.mark.anyio
async def test_change_is_told_at_once(queen):
    """A queen need not wait for half a minute to use a worker that is ready."""
    supervisor: Any = Engine(ServerState.LOADING)
    async with heartbeats(queen.url, supervisor, "m", 1, interval=3600):
        assert (await asyncio.to_thread(queen.next))["status"] == "starting"
        supervisor.state = ServerState.READY
        assert (await asyncio.to_thread(queen.next))["status"] == "ready"


@pytest.mark.parametrize("url", ["queen:8500", "ftp://queen/", "/v1/worker-heartbeat"])
def test_url_of_another_kind(url):
    """Is refused before anything starts."""
    with pytest.raises(ConfigError, match=r"--heartbeat-url is .*; it must be an http or https URL"):
        Config(engine=EngineConfig(), server=ServerConfig(heartbeat_url=url))
