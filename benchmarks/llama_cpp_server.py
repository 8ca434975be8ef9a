"""llama-cpp-python's server in a restart loop, as operators run it: what replaces a crashed engine there.

Owns the loop and the process. Does not know rbee. A crash takes the port and every connection with it; the loop starts
the next process as soon as the last one is gone.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from sse_client import http_request

if TYPE_CHECKING:
    from pathlib import Path

_PATIENCE = 120.0  # seconds


def can_serve(python: Path) -> bool:
    """Whether this interpreter has llama-cpp-python with all that its server needs."""
    if not python.is_file():
        return False
    imports: list[str | Path] = [python, "-c", "import llama_cpp.server.app, uvicorn"]
    return subprocess.run(imports, capture_output=True, check=False).returncode == 0


class LlamaCppServer:
    """A server that serves when the constructor returns, and again after each death."""

    def __init__(self, python: Path, gguf: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._command: list[str | Path] = [python, "-m", "llama_cpp.server", "--model", gguf, "--host", "127.0.0.1"]
        self._command += ["--port", str(self._port), "--verbose", "false", "--n_ctx", "2048"]
        self._stopping = False
        self._process = self._start()
        self._loop = threading.Thread(target=self._start_again)
        self._loop.start()
        self.until_served()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _start_again(self) -> None:
        while True:
            self._process.wait()
            if self._stopping:
                return
            self._process = self._start()

    def kill(self) -> None:
        """SIGKILL, as the kernel does it when memory is out."""
        self._process.kill()

    def until_served(self) -> int:
        """When it first answered, in ns."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/v1/models")
                if connection.getresponse().status == 200:
                    connection.close()
                    return time.monotonic_ns()
            connection.close()
        raise SystemExit("The peer does not serve; start its command by hand to see why.")

    def open_stream(self) -> socket.socket:
        """One that has sent its first token. The peer serves one request at a time."""
        payload = {"prompt": "Once upon a time", "max_tokens": 1500, "stream": True}
        request = http_request(f"http://127.0.0.1:{self._port}", "/v1/completions", payload)[2]
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=_PATIENCE)
        sock.sendall(request)
        while b"data: " not in (piece := sock.recv(65536)):
            if not piece:
                raise SystemExit("The peer ended a stream before its first token.")
        return sock

    def stop(self) -> None:
        """End it and its loop."""
        self._stopping = True
        self._process.kill()
        self._loop.join()


def fault(server: LlamaCppServer) -> dict[str, float]:
    """One SIGKILL: milliseconds until the client knows (its connection ends), and until the next process serves."""
    sock = server.open_stream()
    killed_ns = time.monotonic_ns()
    server.kill()
    with contextlib.suppress(ConnectionError):
        while sock.recv(65536):
            pass
    told_ns = time.monotonic_ns()
    served_ns = server.until_served()
    sock.close()
    return {"told_ms": (told_ns - killed_ns) / 1e6, "serves_ms": (served_ns - killed_ns) / 1e6}
