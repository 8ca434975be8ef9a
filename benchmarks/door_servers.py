"""The servers that bench_door.py compares, each a process of its own, and what one of them holds.

Owns how they are started and looked at from outside. Does not know what is done to them.
"""

from __future__ import annotations

import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil
from delivery_floor import read_until_closed
from faulty_server import memory_kb
from own_server import OwnServer, cpu_seconds
from sse_client import http_request

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

STEP_MS = 20.0  # of every stream in the attack
_SHORT_STEP_MS = 1.0  # where requests are counted: what has slept for long finds its caches cold
RBEE, RBEE_16 = "rbee", "rbee, --max-body-mib 16"
PARSERS = {"uvicorn + httptools": "httptools", "uvicorn + h11": "h11"}
CONTENDERS = (RBEE, RBEE_16, *PARSERS)
_PATIENCE = 30.0  # seconds
_SETTLE = 0.2  # seconds
_QUIET = ("--no-log-requests",)
POST = {"prompt": "x", "user": "x" * 4000, "max_tokens": 1}  # 4 KB of which the tokenizer gets one


class PeerServer:
    """`door_peer.py`, ready when the constructor returns.

    Attributes:
        url: where it listens.
        pid: of its process.
    """

    def __init__(self, parser: str, step_ms: float) -> None:
        command = [sys.executable, str(Path(__file__).parent / "door_peer.py"), parser, f"{step_ms:g}"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        assert self._process.stdout is not None
        match = re.search(r"listening on (\S+)", self._process.stdout.readline())
        if match is None:
            raise SystemExit("The peer ended before it listened; its error is above.")
        self.url = match[1]

    def stop(self) -> None:
        """End it: with a signal, and if that does not end it in time, by force."""
        self._process.terminate()
        try:
            self._process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def start(name: str, step_ms: float = STEP_MS) -> OwnServer | PeerServer:
    """One of CONTENDERS, with room for every stream of the attack."""
    if name in PARSERS:
        return PeerServer(PARSERS[name], step_ms)
    options = [
        "--max-num-seqs",
        "1024",
        "--max-num-batched-tokens",
        "2048",
        *(["--max-body-mib", "16"] if name == RBEE_16 else []),
    ]
    return OwnServer("--model", "synthetic", "--synthetic-step-ms", f"{step_ms:g}", *_QUIET, *options)


def descriptors(pid: int) -> int:
    """Open files of a process; the fewest of some looks, because /health is asked on connections that come and go."""
    looks: list[int] = []
    for _ in range(20):
        looks.append(psutil.Process(pid).num_fds())
        time.sleep(0.01)
    return min(looks)


class Peak:
    """The most memory that a process holds within a `with` block, in kB, looked at every `period` seconds."""

    def __init__(self, pid: int, period: float) -> None:
        self._pid, self._period = pid, period
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.kb = 0

    def __enter__(self) -> Self:
        self.kb = memory_kb(self._pid)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(self._period):
            self.kb = max(self.kb, memory_kb(self._pid))


def cpu_us(name: str, gets: int, posts: int, streams: int, frames: int) -> dict[str, float]:
    """CPU time of server processes of its own in us.

    "get": per GET /health, and "post": per POST of 4 KB with one token, one after the other on one connection. "fresh":
    per GET /health on a connection of its own. "frame": per streamed frame. The 4 KB are a label: the peer does not
    tokenize a prompt.
    """
    server = start(name, _SHORT_STEP_MS)
    try:
        costs = {
            "get": _per_one(server, lambda number: ask_kept(server.url, number, None), gets),
            "post": _per_one(server, lambda number: ask_kept(server.url, number, POST), posts),
            "fresh": _per_one(server, lambda number: ask_new(server.url, number), gets),
        }
    finally:
        server.stop()
    server = start(name)
    try:
        costs["frame"] = _per_one(server, lambda number: read_frames(server.url, streams, number), frames, parts=1)
        costs["frame"] = round(costs["frame"] / streams, 2)
    finally:
        server.stop()
    return costs


def ask_kept(url: str, number: int, body: dict[str, Any] | None) -> None:
    """So many requests one after the other on one connection: GET /health, or a completion with this body."""
    host, port, request = _request(url, body)
    with socket.create_connection((host, port), timeout=_PATIENCE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(number):
            _answer(sock, request)


def ask_new(url: str, number: int) -> None:
    """So many GET /health one after the other, each on a connection of its own."""
    host, port, request = _request(url, None)
    for _ in range(number):
        with socket.create_connection((host, port), timeout=_PATIENCE) as sock:
            _answer(sock, request)


def read_frames(url: str, streams: int, frames: int) -> None:
    """So many streams at once, of so many frames each, from their requests to their ends."""
    host, port, request = _request(url, {"prompt": "x", "max_tokens": frames, "stream": True})
    sockets = [socket.create_connection((host, port), timeout=_PATIENCE) for _ in range(streams)]
    for sock in sockets:
        sock.sendall(request)
    pieces = read_until_closed(sockets, lambda data: data.endswith(b"0\r\n\r\n"))
    for sock in sockets:
        sock.close()
    seen = sum(piece.count(b"data: {") for reads in pieces for _, piece in reads)
    if seen < streams * frames:
        raise SystemExit(f"{seen} frames came of {streams * frames}.")


def _request(url: str, body: dict[str, Any] | None) -> tuple[str, int, bytes]:
    host, port, request = http_request(url, "/v1/completions", body or {})
    return host, port, request if body else f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def _per_one(server: OwnServer | PeerServer, do: Callable[[int], None], number: int, parts: int = 10) -> float:
    """CPU time of one in us: the median of some parts, less what the server takes without a request.

    A pause of the machine hits one part. Before them comes one request that is not counted.
    """
    time.sleep(_SETTLE)
    began, before = time.monotonic(), cpu_seconds(server.pid)
    time.sleep(1.0)
    idle = (cpu_seconds(server.pid) - before) / (time.monotonic() - began)
    do(1)
    each = max(1, number // parts)
    costs = []
    for _ in range(parts):
        began, before = time.monotonic(), cpu_seconds(server.pid)
        do(each)
        used = cpu_seconds(server.pid) - before - idle * (time.monotonic() - began)
        costs.append(used / each * 1e6)
    return round(statistics.median(costs), 1)


def _answer(sock: socket.socket, request: bytes) -> None:
    """Send a request, and read its answer to the end."""
    sock.sendall(request)
    seen = b""
    while True:
        piece = sock.recv(65536)
        if not piece:
            raise SystemExit(f"The server has closed a connection: {seen[:200]!r}")
        seen += piece
        head, end, body = seen.partition(b"\r\n\r\n")
        if end and (match := re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)) and len(body) >= int(match[1]):
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"The server does not take a request: {seen[:300]!r}")
            return
