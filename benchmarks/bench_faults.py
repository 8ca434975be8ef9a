"""How soon a server serves again after its engine died, and how soon it says that its engine hangs.

    python benchmarks/bench_faults.py --save

One server, whose engine gets one fault after another while `--streams` clients read:

* kill: SIGKILL. `told_ms`: until the last client has read its error event. `serves_ms`: until /ready is 200 again.
* stop: SIGSTOP. `noticed_ms`: until /ready is 503, less --hang-timeout. `serves_ms` as above, less the same.

/ready is asked again as soon as it has answered. Beside it, in turn with every fault, the floor: the time from SIGKILL
until a process that loads nothing has been started again and has said so (`exec_ms`). All times are on CLOCK_MONOTONIC.
"""

from __future__ import annotations

import http.client
import signal
import socket
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
from own_server import OwnServer
from program import argument_parser, finish, progress
from saving import table
from sse_client import http_request

if TYPE_CHECKING:
    from collections.abc import Callable

HANG_TIMEOUT = 1.0  # seconds
_WINDOW = 1.0  # of restarts, in seconds: with a fault in each, every one is the first, which is not delayed
_PATIENCE = 60.0  # seconds after which the program gives up


class Faulty:
    """A server that is ready, the streams that clients read from it, and its engine.

    Attributes:
        url: of the server.
    """

    def __init__(self, model: str, streams: int) -> None:
        self._server = OwnServer(
            *("--model", model, "--synthetic-step-ms", "10", "--max-restarts", "1000"),
            *("--restart-window", str(_WINDOW), "--hang-timeout", str(HANG_TIMEOUT)),
        )
        self.url = self._server.url
        self._model = model
        self._streams = streams
        self._connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=_PATIENCE)

    def engine(self) -> psutil.Process:
        """The process that computes now."""
        [engine] = [child for child in psutil.Process(self._server.pid).children() if "rbee.engine" in child.cmdline()]
        return engine

    def open_streams(self) -> list[socket.socket]:
        """Each has sent its first token."""
        sockets = []
        for number in range(self._streams):
            payload = {"prompt": f"stream {number}", "max_tokens": 8000, "stream": True, "ignore_eos": True}
            host, port, request = http_request(self.url, "/v1/completions", payload)
            sock = socket.create_connection((host, port), timeout=_PATIENCE)
            sock.sendall(request)
            sockets.append(sock)
        for sock in sockets:
            while b"data: " not in sock.recv(65536):
                pass
        return sockets

    def until_ready(self, wanted: bool) -> int:  # noqa: FBT001 - what is waited for
        """When /ready first said so, in ns."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            self._connection.request("GET", "/ready")
            response = self._connection.getresponse()
            response.read()
            if (response.status == 200) == wanted:
                return time.monotonic_ns()
        raise SystemExit("The server did not get ready again; its error is above.")

    def close(self) -> None:
        self._connection.close()
        self._server.stop()


def kill(server: Faulty) -> dict[str, float]:
    """One SIGKILL: milliseconds until the last client was told, and until the next engine serves."""
    sockets = server.open_streams()
    killed_ns = time.monotonic_ns()
    server.engine().send_signal(signal.SIGKILL)
    for sock in sockets:
        seen = b""
        while b'"code":"engine_died"' not in seen:
            piece = sock.recv(65536)
            if not piece:
                raise SystemExit("A stream ended without an error event.")
            seen = seen[-64:] + piece
    told_ns = time.monotonic_ns()
    served_ns = server.until_ready(wanted=True)
    for sock in sockets:
        sock.close()
    return {"told_ms": (told_ns - killed_ns) / 1e6, "serves_ms": (served_ns - killed_ns) / 1e6}


def stop(server: Faulty) -> dict[str, float]:
    """One SIGSTOP: milliseconds beyond the timeout until /ready says so, and until the next engine serves."""
    stopped_ns = time.monotonic_ns()
    server.engine().send_signal(signal.SIGSTOP)
    noticed_ns = server.until_ready(wanted=False)
    served_ns = server.until_ready(wanted=True)
    timeout_ns = HANG_TIMEOUT * 1e9
    return {
        "noticed_ms": (noticed_ns - stopped_ns - timeout_ns) / 1e6,
        "serves_ms": (served_ns - stopped_ns - timeout_ns) / 1e6,
    }


def floor() -> dict[str, float]:
    """A process without imports is killed and started again: milliseconds until it has said so."""
    command = [sys.executable, "-S", "-c", "print(flush=True); import time; time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        first.stdout.readline()
        killed_ns = time.monotonic_ns()
        first.kill()
        first.wait()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as second:
        assert second.stdout is not None
        second.stdout.readline()
        said_ns = time.monotonic_ns()
        second.kill()
    return {"exec_ms": (said_ns - killed_ns) / 1e6}


def measure(model: str, streams: int, faults: int) -> list[dict[str, Any]]:
    """Each fault so often, in turn; a row of medians and worst values for each figure."""
    server = Faulty(model, streams)
    seen: dict[str, list[float]] = {}
    actions: dict[str, Callable[[], dict[str, float]]] = {
        "floor": floor,
        "kill": lambda: kill(server),
        "stop": lambda: stop(server),
    }
    try:
        for number in range(faults):
            if number % 10 == 0:
                progress(f"{model}: {number} of {faults} faults of each kind")
            for name, action in actions.items():
                for figure, value in action().items():
                    seen.setdefault(f"{name} {figure}", []).append(value)
                time.sleep(_WINDOW + 0.1)  # the restart is forgotten
    finally:
        server.close()
    return [
        {
            "model": model,
            "figure": figure,
            "count": len(values),
            "p50": round(statistics.median(values), 1),
            "p99": round(sorted(values)[min(len(values) - 1, int(0.99 * len(values)))], 1),
            "max": round(max(values), 1),
        }
        for figure, values in seen.items()
    ]


def main() -> None:
    """Every model, fault by fault."""
    parser = argument_parser(__doc__, "faults.{json,md}")
    parser.add_argument("--models", default="synthetic,smollm2-135m-instruct", help="in turn (default %(default)s)")
    parser.add_argument("--streams", type=int, default=64, help="that are open at a kill (default %(default)s)")
    parser.add_argument("--faults", type=int, default=50, help="of each kind (default %(default)s)")
    options = parser.parse_args()
    rows = [row for model in options.models.split(",") for row in measure(model, options.streams, options.faults)]
    columns = ["model", "figure", "count", "p50", "p99", "max"]
    report = f"{options.streams} streams at each kill; a hang counts after {HANG_TIMEOUT:g} s.\n\n"
    report += table(columns, [[str(row[column]) for column in columns] for row in rows])
    finish(options, "faults", "When the engine dies or hangs", report, {"benchmark": "faults", "rows": rows})


if __name__ == "__main__":
    main()
