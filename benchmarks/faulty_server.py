"""An `rbee serve` that gets faults: its engine, its streams, and what it holds for its clients.

Owns how a program sees these from outside: signals, sockets, /ready, /proc and the arena. Does not know which faults
there are.
"""

from __future__ import annotations

import http.client
import json
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import psutil
from own_server import OwnServer
from sse_client import http_request

from rbee.transport.observer import Observer

if TYPE_CHECKING:
    from rbee.transport.observer import Sample

PATIENCE = 60.0  # seconds after which a program gives up
_BETWEEN_ASKS = 0.002  # seconds
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: the kernel sends RST at once


class Held(NamedTuple):
    """What server and engine hold; memory is RssAnon and swap, in kB."""

    rings: int
    blocks: int  # of the KV cache
    fds: int
    server_kb: int
    engine_kb: int


def memory_kb(pid: int) -> int:
    """Memory of a process that no file backs, wherever it is, in kB."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "VmSwap"))


def hang_up(sock: socket.socket) -> None:
    """Drop a connection with a reset, as a process that dies does."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


class FaultyServer:
    """A server that is ready, with a synthetic model at 10 ms steps or another one.

    Attributes:
        url: of the server.
        pid: of its process.
    """

    def __init__(self, model: str, *options: str) -> None:
        self._server = OwnServer("--model", model, "--synthetic-step-ms", "10", *options)
        self.url, self.pid = self._server.url, self._server.pid
        parts = urlsplit(self.url)
        self.address = (str(parts.hostname), int(parts.port or 80))
        self._connection = http.client.HTTPConnection(parts.netloc, timeout=PATIENCE)
        self._observer = Observer(self.pid)

    def engine(self) -> psutil.Process:
        """The process that computes now."""
        [engine] = [child for child in psutil.Process(self.pid).children() if "rbee.engine" in child.cmdline()]
        return engine

    def sample(self) -> Sample:
        """What both processes have counted."""
        sample = self._observer.sample()
        if sample is None:
            raise SystemExit("The server has no engine any more; its error is above.")
        return sample

    def request(self, prompt: str, tokens: int, **fields: Any) -> bytes:
        """The bytes of a request for a stream that nothing but its length ends."""
        payload = {"prompt": prompt, "max_tokens": tokens, "stream": True, "ignore_eos": True} | fields
        return http_request(self.url, "/v1/completions", payload)[2]

    def open_streams(self, number: int, tokens: int = 8000) -> list[socket.socket]:
        """Each has sent its first token."""
        sockets = []
        for index in range(number):
            sock = socket.create_connection(self.address, timeout=PATIENCE)
            sock.sendall(self.request(f"stream {index}", tokens))
            sockets.append(sock)
        for sock in sockets:
            while b"data: " not in sock.recv(65536):
                pass
        return sockets

    def ready(self) -> dict[str, Any] | None:
        """What /ready says; None if it is not 200."""
        try:
            self._connection.request("GET", "/ready")
            response = self._connection.getresponse()
        except ConnectionError:  # the server has closed a connection that was idle for seconds
            self._connection.close()
            self._connection.request("GET", "/ready")
            response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            return None
        answer: dict[str, Any] = json.loads(body)
        return answer

    def until_ready(self, wanted: bool) -> int:  # noqa: FBT001 - what is waited for
        """When /ready first said so, in ns."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if (self.ready() is not None) == wanted:
                return time.monotonic_ns()
            time.sleep(_BETWEEN_ASKS)
        raise SystemExit("The server did not get ready again; its error is above.")

    def rings(self) -> int:
        """Rings that requests hold now."""
        answer = self.ready()
        if answer is None:
            raise SystemExit("The server is not ready any more; its error is above.")
        return int(answer["rings_in_use"])

    def until_rings(self, wanted: int) -> None:
        """Return when so many rings are in use."""
        deadline = time.monotonic() + PATIENCE
        while (seen := self.rings()) != wanted:
            if time.monotonic() > deadline:
                raise SystemExit(f"{seen} rings are in use where it should be {wanted}: requests were lost, or leaked.")
            time.sleep(0.001)

    def held(self) -> Held:
        """What both processes hold now; the connection of this object is among the descriptors."""
        rings = self.rings()
        blocks = self.sample().counters["kv_blocks_used"]
        fds = psutil.Process(self.pid).num_fds()
        return Held(rings, blocks, fds, memory_kb(self.pid), memory_kb(self.engine().pid))

    def stop(self) -> None:
        """End it as an operator would."""
        self.close()
        self._server.stop()

    def wait(self) -> int:
        """The exit code, once it has ended."""
        self.close()
        return self._server.wait()

    def close(self) -> None:
        """Let go of the server, which runs on."""
        self._connection.close()
        self._observer.close()
