"""What the HTTP edge costs beside that of another checkout: CPU time of the server process, for requests and frames.

    python benchmarks/edge_before_after.py ../before --save

`../before` is a checkout with its own .venv. A server of each runs with the synthetic model at 1 ms steps, without a
log of requests, and the two are asked in turn, some hundred requests at a time; every second round begins with the
other. Each part counts the CPU time that the kernel has booked for the server's process meanwhile, all threads, less
what it takes without a request. A part is short, so that what disturbs the machine disturbs both sides alike.

* get: GET /health, one after the other on one connection.
* post: POST of 4 KB with one token, the same way. The 4 KB are a label, so that the tokenizer has nothing to do.
* fresh: GET /health, each on a connection of its own.
* frame: streamed frames of 64 streams, their requests included.

us are medians over all rounds, with the quartiles. The ratio is that of the medians.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from door_servers import POST, ask_kept, ask_new, read_frames
from machine import commit_of
from own_server import OwnServer, cpu_seconds
from program import argument_parser, command_line, finish, progress
from saving import table

if TYPE_CHECKING:
    from collections.abc import Callable

_KINDS: dict[str, tuple[Callable[[str, int], None], int]] = {
    "get": (lambda url, number: ask_kept(url, number, None), 400),
    "post": (lambda url, number: ask_kept(url, number, POST), 100),
    "fresh": (ask_new, 300),
    "frame": (lambda url, number: read_frames(url, 64, number // 64), 64 * 60),
}
_SETTLE = 0.02  # seconds: what ends an answer may come behind it
_IDLE = 1.0  # seconds
_OPTIONS = ("--model", "synthetic", "--synthetic-step-ms", "1", "--no-log-requests", "--max-num-seqs", "128")


def measure(servers: dict[str, OwnServer], kind: str, rounds: int) -> dict[str, list[float]]:
    """CPU time in us for one of a kind, by side, for each round."""
    do, number = _KINDS[kind]
    idle = {}
    for side, server in servers.items():
        do(server.url, number)
        time.sleep(_SETTLE)
        before = cpu_seconds(server.pid)
        time.sleep(_IDLE)
        idle[side] = (cpu_seconds(server.pid) - before) / _IDLE
    costs: dict[str, list[float]] = {side: [] for side in servers}
    for turn in range(rounds):
        for side in sorted(servers, reverse=turn % 2 == 1):
            server = servers[side]
            began, before = time.monotonic(), cpu_seconds(server.pid)
            do(server.url, number)
            time.sleep(_SETTLE)
            used = cpu_seconds(server.pid) - before - idle[side] * (time.monotonic() - began)
            costs[side].append(used / number * 1e6)
    return costs


def main() -> None:
    """Ask both servers, and report."""
    parser = argument_parser(__doc__, "edge.{json,md}", rounds=25)
    parser.add_argument("before", type=Path, help="the other checkout")
    options = parser.parse_args()
    other = options.before.resolve() / ".venv/bin/python"
    servers = {"after": OwnServer(*_OPTIONS), "before": OwnServer(*_OPTIONS, python=str(other))}
    before = commit_of(options.before)
    rows: list[list[str]] = []
    result: dict[str, Any] = {"before": before}
    try:
        for kind in _KINDS:
            progress(kind)
            costs = measure(servers, kind, options.rounds)
            us = {side: statistics.median(values) for side, values in costs.items()}
            ratio = us["after"] / us["before"]
            quartiles = {side: statistics.quantiles(values, n=4) for side, values in costs.items()}
            result[kind] = {**us, "ratio": round(ratio, 3), "quartiles": quartiles}
            shown = [f"{us[side]:.1f} ({quartiles[side][0]:.1f} to {quartiles[side][2]:.1f})" for side in sorted(us)]
            rows.append([kind, *reversed(shown), f"{ratio:.3f}"])
    finally:
        for server in servers.values():
            server.stop()
    report = table(["one", "before, us", "after, us", "ratio"], rows)
    preface = (
        f"Made by `{command_line()}`; before is commit {before}. What each figure is: docstring of "
        "`benchmarks/edge_before_after.py`.\n\n"
    )
    finish(options, "edge", "CPU of the edge before and after", report, result, preface=preface)


if __name__ == "__main__":
    main()
