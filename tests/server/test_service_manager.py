"""What a service manager and a load balancer see of a server's life."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from rbee.server.service_manager import _watchdog_period

if TYPE_CHECKING:
    from collections.abc import Iterator

SYNTHETIC = ("--model", "synthetic", "--synthetic-step-ms", "1")
_PATIENCE = 60.0  # seconds after which a test that waits fails


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path, monkeypatch) -> Iterator[socket.socket]:
    """The socket of a service manager, which `NOTIFY_SOCKET` names."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@rbee-test-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0", 1) if request.param == "abstract" else name)
        sock.settimeout(_PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


def test_service_manager_is_told(manager, start_server):
    """That the server is ready, and that it stops; no signs of life unless it wants them."""
    with start_server(*SYNTHETIC) as server:
        assert manager.recv(100) == b"READY=1"
        assert server.stop() == 0
    assert manager.recv(100) == b"STOPPING=1"
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)


def test_signs_of_life(manager, start_server, monkeypatch):
    """They come again and again, from the event loop that serves."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    with start_server(*SYNTHETIC) as server:
        assert [manager.recv(100) for _ in range(4)] == [b"READY=1", *[b"WATCHDOG=1"] * 3]
        server.stop()


def test_a_manager_that_has_gone_is_no_reason_to_end(start_server, monkeypatch, tmp_path):
    """The log says so."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nothing"))
    with start_server(*SYNTHETIC) as server:
        assert httpx.get(f"{server.url}/ready").status_code == 200
        assert server.stop() == 0
        assert "the service manager cannot be told READY=1: " in server.log.read_text()


@pytest.mark.parametrize(
    ("usec", "pid", "period"),
    [
        (None, None, None),
        ("0", None, None),
        ("-5", None, None),
        ("soon", None, None),
        ("30000000", None, 15.0),
        ("30000000", "own", 15.0),
        ("30000000", "1", None),
        ("999999999999999", None, 3600.0),
    ],
)
def test_watchdog_period(usec, pid, period, monkeypatch):
    """Half of what the manager allows this process; nothing if it asked another one, or makes no sense."""
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert _watchdog_period() == period


def test_load_balancer_has_time_to_look_away(start_server):
    """After SIGTERM /ready says that the server leaves, and requests are taken; a second signal ends the delay."""
    with start_server(*SYNTHETIC, "--drain-delay", "600") as server:
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        while (ready := httpx.get(f"{server.url}/ready")).status_code == 200:
            assert time.monotonic() < deadline
        assert (ready.status_code, ready.json()["state"], ready.json()["ready"]) == (503, "draining", False)
        body = {"model": "synthetic", "prompt": "x", "max_tokens": 3}
        assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 200
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.stop() == 0
