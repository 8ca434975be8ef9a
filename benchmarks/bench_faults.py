"""How soon a server serves again after a fault, how soon it says so, and what faults leave behind.

    make bench-faults ARGS=--save

One server per model, which gets `--faults` of each kind, in turn; all times are on CLOCK_MONOTONIC:

* kill: SIGKILL of the engine while `--streams` clients read. `told_ms`: until the last of them has read its error
  event. `serves_ms`: until /ready is 200 again.
* stop: SIGSTOP. `noticed_ms`: until /ready is 503, less --hang-timeout. `serves_ms` as above, less the same.
* leave: one client resets its connection in decode, eight times per fault of the other kinds. `free_ms`: until its
  ring and its KV blocks are free, in the arena's counters. The engine notices at the end of the step that is under way:
  `step_ms` is its time, and `more_ms` what `free_ms` has beyond it.
* floor: SIGKILL of a process that loads nothing, until it has been started again and has said so.

As many times, with servers of their own:

* start: `cold_ms`, from the start of `rbee serve` to its "ready".
* drain: SIGTERM while `--streams` clients read 40 tokens each. `exit_ms`: from the last client's end to the exit.
  A client whose stream is not whole ends the program.

* peer: with --vs, llama-cpp-python's server in a restart loop, killed while one client reads (it serves one
  at a time). `told_ms`: until that client's connection has ended, which is all that it is told. `serves_ms`, `cold_ms`
  as above. It has nothing that notices a hang.
* aborts: --aborts requests whose clients leave in four states, and what the server holds before and after; `aborts.py`.

/ready is asked every two milliseconds: asked without a pause, two processes would be busy with that beside the engine
that starts.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import aborts
from faulty_server import PATIENCE, FaultyServer, hang_up
from llama_cpp_server import LlamaCppServer, can_serve, fault
from peer_process import add_peer_option
from program import argument_parser, finish, progress
from saving import table

from rbee.config import DEFAULT_MODEL
from rbee.models import ConsoleProgress, gguf_of, prepare

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

HANG_TIMEOUT = 1.0  # seconds
_WINDOW = 1.0  # of restarts, in seconds: with a fault in each, every one is the first, which is not delayed
_BETWEEN_LOOKS = 0.0002  # seconds: without a pause the engine and its watcher would share a core
_DRAINED_TOKENS = 40
_LEAVES = 8  # per fault of the other kinds: one takes milliseconds, and its 99th percentile is asked for

Figures = dict[str, float]


def kill(server: FaultyServer, streams: int) -> Figures:
    """One SIGKILL: milliseconds until the last client was told, and until the next engine serves."""
    sockets = server.open_streams(streams)
    killed_ns = time.monotonic_ns()
    server.engine().send_signal(signal.SIGKILL)
    for sock in sockets:
        if b'"code":"engine_died"' not in _rest(sock, b'"code":"engine_died"'):
            raise SystemExit("A stream ended without an error event.")
    told_ns = time.monotonic_ns()
    served_ns = server.until_ready(wanted=True)
    for sock in sockets:
        sock.close()
    return {"told_ms": (told_ns - killed_ns) / 1e6, "serves_ms": (served_ns - killed_ns) / 1e6}


def _rest(sock: socket.socket, sign: bytes) -> bytes:
    """The last bytes of a stream, which has been read until `sign` or to its end."""
    seen = b""
    while sign not in seen:
        piece = sock.recv(65536)
        if not piece:
            break
        seen = seen[-256:] + piece
    return seen


def stop(server: FaultyServer) -> Figures:
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


def leave(server: FaultyServer) -> Figures:
    """One client that resets its connection: milliseconds until nothing of it is held; and the step that it was in."""
    before = server.sample()
    [sock] = server.open_streams(1)
    for _ in range(10):
        sock.recv(65536)
    at_leave = server.sample()
    left_ns = time.monotonic_ns()
    hang_up(sock)
    deadline = left_ns + int(PATIENCE * 1e9)
    while True:
        sample = server.sample()
        free_ns = time.monotonic_ns()
        now = sample.counters
        if now["finishes"] > before.counters["finishes"] and not now["kv_blocks_used"]:
            break
        if free_ns > deadline:
            raise SystemExit("A client has left, and its ring or its KV blocks are still in use.")
        time.sleep(_BETWEEN_LOOKS)
    step_ms = (sample.histograms["step"].minus(at_leave.histograms["step"]).quantile(1.0) or 0.0) / 1e6
    free_ms = (free_ns - left_ns) / 1e6
    return {"free_ms": free_ms, "step_ms": step_ms, "more_ms": free_ms - step_ms}


def floor() -> Figures:
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


def drain(model: str, streams: int) -> dict[str, Figures]:
    """A start and a SIGTERM beside streams that go on to their ends."""
    started_ns = time.monotonic_ns()
    server = FaultyServer(model)
    ready_ns = time.monotonic_ns()
    sockets = server.open_streams(streams, _DRAINED_TOKENS)
    os.kill(server.pid, signal.SIGTERM)
    for sock in sockets:
        if b"[DONE]" not in _rest(sock, b"data: [DONE]"):
            raise SystemExit("A stream was cut by the drain.")
    ended_ns = time.monotonic_ns()
    if code := server.wait():
        raise SystemExit(f"A drained server ended with exit code {code}.")
    exit_ns = time.monotonic_ns()
    for sock in sockets:
        sock.close()
    return {
        "start": {"cold_ms": (ready_ns - started_ns) / 1e6},
        "drain": {"exit_ms": (exit_ns - ended_ns) / 1e6},
    }


class _Peer:
    """The peer, with a start of its own for each fault."""

    def __init__(self, python: Path, model: str) -> None:
        with ConsoleProgress() as console:
            gguf = gguf_of(prepare(model, progress=console).path)
        if gguf is None:
            raise SystemExit(f"{model} is no GGUF file, which the peer needs.")
        self._python, self._gguf = python, gguf

    def fault(self) -> Figures:
        """A start, and a SIGKILL."""
        started_ns = time.monotonic_ns()
        server = LlamaCppServer(self._python, self._gguf)
        served_ns = time.monotonic_ns()
        try:
            return fault(server) | {"cold_ms": (served_ns - started_ns) / 1e6}
        finally:
            server.stop()


def measure(
    model: str, streams: int, faults: int, peer: Path | None, only: list[str] | None = None
) -> list[dict[str, Any]]:
    """Each fault, or those of `only`, so often, in turn; a row of medians and worst values for each figure."""
    options = ["--max-restarts", "1000", "--restart-window", str(_WINDOW), "--hang-timeout", str(HANG_TIMEOUT)]
    server = FaultyServer(model, *options)
    actions: dict[str, Callable[[], Figures]] = {
        "floor": floor,
        "leave": lambda: leave(server),
        "kill": lambda: kill(server, streams),
        "stop": lambda: stop(server),
    }
    if peer and model != "synthetic":
        actions["peer"] = _Peer(peer, model).fault
    actions = {name: action for name, action in actions.items() if not only or name in only}
    seen: dict[str, list[float]] = {}
    try:
        for number in range(faults):
            if number % 10 == 0:
                progress(f"{model}: {number} of {faults} faults of each kind")
            for name, action in actions.items():
                for _ in range(_LEAVES if name == "leave" else 1):
                    _add(seen, name, action())
                if name in {"kill", "stop"}:
                    time.sleep(_WINDOW + 0.1)  # the restart is forgotten
            if only and "drain" not in only:
                continue
            for name, figures in drain(model, streams).items():
                _add(seen, name, figures)
    finally:
        server.stop()
    return [_row(model, figure, values) for figure, values in seen.items()]


def _add(seen: dict[str, list[float]], name: str, figures: Figures) -> None:
    for figure, value in figures.items():
        seen.setdefault(f"{name} {figure}", []).append(value)


def _row(model: str, figure: str, values: list[float]) -> dict[str, Any]:
    return {
        "model": model,
        "figure": figure,
        "count": len(values),
        "p50": round(statistics.median(values), 1),
        "p99": round(sorted(values)[min(len(values) - 1, int(0.99 * len(values)))], 1),
        "max": round(max(values), 1),
    }


def main() -> None:
    """Every model, fault by fault."""
    parser = argument_parser(__doc__, "faults.{json,md}")
    parser.add_argument("--models", default=f"synthetic,{DEFAULT_MODEL}", help="in turn (default %(default)s)")
    parser.add_argument("--streams", type=int, default=64, help="that are open at a fault (default %(default)s)")
    parser.add_argument("--faults", type=int, default=50, help="of each kind (default %(default)s)")
    parser.add_argument(
        "--only", type=lambda names: names.split(","), help="of floor, leave, kill, stop, peer, drain (default all)"
    )
    aborts.add_option(parser)
    add_peer_option(parser)
    options = parser.parse_args()
    peer = next((python for python in options.vs if can_serve(python)), None)
    models = options.models.split(",")
    rows = [row for model in models for row in measure(model, options.streams, options.faults, peer, options.only)]
    left = [] if options.only else [aborts.measure(model, options.aborts) for model in models]
    columns = ["model", "figure", "count", "p50", "p99", "max"]
    report = f"{options.streams} streams at each kill and drain; a hang counts after {HANG_TIMEOUT:g} s."
    if peer is None:
        report += " No peer: llama-cpp-python's server is not installed (`make bench-faults` does that)."
    report += "\n\n" + table(columns, [[str(row[column]) for column in columns] for row in rows])
    if left:
        report += "\n\nWhat requests leave whose clients went away, a quarter of them each in the queue, in prefill, "
        report += "in decode, and parked for a client that does not come back. Memory is RssAnon and swap.\n\n"
        report += aborts.report_of(left)
    result = {"benchmark": "faults", "rows": rows, "aborts": left, "peer": peer.parent.parent.name if peer else None}
    finish(options, "faults", "When the engine dies or hangs", report, result)


if __name__ == "__main__":
    main()
