"""Start-up time as a user sees it: `make serve` typed -> /health answers -> /ready answers, everything installed.

    python benchmarks/bench_start.py --rounds 5 --save

Run `make setup` and `rbee pull` first: this measures the second start, not the first. The floor of the same run is a
Python that only imports torch and transformers.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from program import argument_parser, finish, progress
from saving import table

_ROOT = Path(__file__).parent.parent
_TIMEOUT_S = 120.0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _seconds_until_200(process: subprocess.Popen[bytes], port: int, path: str, started: float) -> float:
    """Request `path` every 5 ms until the status is 200; return the seconds since `started`."""
    while time.monotonic() - started < _TIMEOUT_S:
        if process.poll() is not None:
            raise SystemExit(f"The server ended with exit code {process.returncode} before {path} answered.")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == http.HTTPStatus.OK:
                return time.monotonic() - started
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.005)
    raise SystemExit(f"{path} did not answer 200 within {_TIMEOUT_S:g} s.")


def measure_start(arguments: str) -> dict[str, float]:
    """Start `make serve` once in a process group of its own; seconds to /health and to /ready."""
    port = _free_port()
    started = time.monotonic()
    process = subprocess.Popen(
        ["make", "serve", f"ARGS=--port {port} {arguments}"],
        cwd=_ROOT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return {
            "health_s": _seconds_until_200(process, port, "/health", started),
            "ready_s": _seconds_until_200(process, port, "/ready", started),
        }
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def measure_imports() -> float:
    """Seconds of a Python process that imports torch and transformers' model loader and nothing else."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch; from transformers import AutoModelForCausalLM"], check=True)
    return time.monotonic() - started


def main() -> None:
    """Measure start-up and floor in turn."""
    parser = argument_parser(__doc__, "start.{json,md}", rounds=3)
    parser.add_argument("--serve-args", default="", help="more arguments for `rbee serve`, as one string")
    options = parser.parse_args()
    rows = []
    for _ in range(options.rounds):
        row = measure_start(options.serve_args) | {"imports_s": measure_imports()}
        progress("  ".join(f"{name} {seconds:.2f}" for name, seconds in row.items()))
        rows.append(row)
    medians = {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}
    report = table(["medians", "seconds"], [[name, f"{seconds:.2f}"] for name, seconds in medians.items()])
    finish(options, "start", "Start-up", report, {"benchmark": "start", "rounds": options.rounds, **medians})


if __name__ == "__main__":
    main()
