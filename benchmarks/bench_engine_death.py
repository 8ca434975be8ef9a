"""How soon every client receives the error after the engine was killed.

    python benchmarks/bench_engine_death.py --save

In every round a server of its own streams to `--streams` clients when its engine gets SIGKILL. All times are on the
client's CLOCK_MONOTONIC:

* `error_ms`: from kill(2) until a client has read its error event.
* `end_ms`: until it has read [DONE] and the end of the response.
* `exit_ms`, the floor, in the same rounds: until a pidfd of a killed process that only sleeps is readable.

After the server was stopped, names in /dev/shm and processes that are left are counted.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from delivery_floor import read_until_closed, summary_us
from own_server import OwnServer
from program import argument_parser, finish, integers, progress
from saving import table
from sse_client import http_request

TARGET_MS = 50.0


def _engine_of(server: OwnServer) -> int:
    """The engine is the server's only child that runs rbee.engine."""
    pid = server.pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"rbee.engine" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise SystemExit("The server has no engine; its error is above.")


def _start(url: str, number: int) -> socket.socket:
    payload = {"prompt": f"stream {number}", "max_tokens": 8000, "stream": True}
    host, port, request = http_request(url, "/v1/completions", payload)
    sock = socket.create_connection((host, port))
    sock.sendall(request)
    return sock


def _first_read(reads: list[tuple[int, bytes]], sign: bytes) -> int:
    """When the piece was read with which `sign` was complete."""
    seen = b""
    for read_ns, piece in reads:
        seen = (seen + piece)[-65536:]
        if sign in seen:
            return read_ns
    raise SystemExit(f"A client never read {sign!r}: the stream ended silently.")


def measure(streams: int, step_ms: float) -> dict[str, list[int]]:
    """One round: nanoseconds per client, and what was left behind."""
    server = OwnServer("--model", "synthetic", "--synthetic-step-ms", str(step_ms))
    try:
        sockets = [_start(server.url, number) for number in range(streams)]
        for sock in sockets:
            while b"data: " not in sock.recv(65536):
                pass
        engine = _engine_of(server)
        killed_ns = time.monotonic_ns()
        os.kill(engine, signal.SIGKILL)
        pieces = read_until_closed(sockets, lambda data: data.endswith(b"0\r\n\r\n"))
    finally:
        server.stop()
    for sock in sockets:
        sock.close()
    left = list(Path("/dev/shm").glob(f"rbee-{server.pid}-*"))
    return {
        "error": [_first_read(reads, b'"code":"engine_died"') - killed_ns for reads in pieces],
        "end": [_first_read(reads, b"0\r\n\r\n") - killed_ns for reads in pieces],
        "left": [len(left) + Path(f"/proc/{engine}").exists()],
    }


def measure_floor() -> int:
    """Kill a sleeping process: nanoseconds until its pidfd is readable."""
    sleeper = subprocess.Popen([sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"], stdout=-1)
    assert sleeper.stdout is not None
    sleeper.stdout.readline()
    pidfd = os.pidfd_open(sleeper.pid)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    killed_ns = time.monotonic_ns()
    sleeper.kill()
    poller.poll()
    elapsed = time.monotonic_ns() - killed_ns
    os.close(pidfd)
    sleeper.wait()
    sleeper.stdout.close()
    return elapsed


def _ms(summary: dict[str, float]) -> dict[str, float]:
    return {name: round(value / 1e3, 2) for name, value in summary.items()}


def main() -> None:
    """Kill engines at every number of streams."""
    parser = argument_parser(__doc__, "engine_death.{json,md}")
    parser.add_argument("--streams", type=integers, default="1,64,256", help="levels (default %(default)s)")
    parser.add_argument("--step-ms", type=float, default=10.0, help="cadence (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="engines killed per level (default %(default)s)")
    options = parser.parse_args()
    levels: list[dict[str, Any]] = []
    for streams in options.streams:
        progress(f"{streams} streams")
        floors, rounds = [], []
        for _ in range(options.rounds):
            floors.append(measure_floor())
            rounds.append(measure(streams, options.step_ms))
        levels.append({
            "streams": streams,
            "exit_ms": _ms(summary_us(floors)),
            "error_ms": _ms(summary_us([ns for one in rounds for ns in one["error"]])),
            "end_ms": _ms(summary_us([ns for one in rounds for ns in one["end"]])),
            "left_behind": sum(one["left"][0] for one in rounds),
        })  # fmt: skip
    rows = [
        [str(level["streams"]), what, *(f"{value:.1f}" for value in level[key].values())]
        for level in levels
        for key, what in (
            ("exit_ms", "floor: pidfd of a killed sleeper"),
            ("error_ms", f"error event read (target: p99 <= {TARGET_MS:g})"),
            ("end_ms", "end of the response read"),
        )
    ]
    left = sum(level["left_behind"] for level in levels)
    report = (
        f"{options.rounds} engines per level.\n\n"
        + table(["streams", "milliseconds after SIGKILL", "p50", "p99", "p99.9", "max"], rows)
        + f"\n\nLeft behind after {len(levels) * options.rounds} killed engines (names in /dev/shm, processes): {left}"
    )
    result = {"benchmark": "engine_death", "rounds": options.rounds, "levels": levels}
    finish(options, "engine_death", "When the engine is killed", report, result)


if __name__ == "__main__":
    main()
