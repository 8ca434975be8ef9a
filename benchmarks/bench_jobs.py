"""Server CPU per streamed frame of the jobs protocol, beside OpenAI's chat.

    python benchmarks/bench_jobs.py --save

The synthetic model commits one token per stream on a fixed cadence. Three ways take turns on one server in every round,
another one begins each, and before the first one each has had a short run that does not count:

* `chat`: POST /v1/chat/completions, whose frames the native drain writes.
* `jobs`: POST /v1/jobs, then GET of its stream, whose frames the native drain writes too.
* `jobs in Python`: the same with a stop string that does not come, which takes the frames through Python.

`cpu_us_per_frame` is the CPU time of the server process over the number of tokens, all threads, requests included.
`cpu_us_per_request` is that of streams of one token, and `cpu_us_per_further_frame` what is left without it.
`direct_share` is the part of the tokens that the native drain wrote. `drains_per_step` are turns of the drain: well
below 1, several steps went out together, which is cheaper per frame, and the report calls such a way NOT COMPARABLE.
"""

from __future__ import annotations

import json
import socket
import statistics
from typing import TYPE_CHECKING, Any

from delivery_floor import read_until_closed
from own_server import OwnServer
from program import allow_many_files, argument_parser, command_line, disturbed, finish, progress, rotated
from sse_client import http_request

if TYPE_CHECKING:
    import argparse

_CHAT, _JOBS = "/v1/chat/completions", "/v1/jobs"
_NEVER = "\x00"  # a stop string that the synthetic model does not write
_WARM_STEPS = 20

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (_CHAT, {"stream": True}),
    "jobs": (_JOBS, {}),
    "jobs in Python": (_JOBS, {"stop": [_NEVER]}),
}


def measure(server: OwnServer, way: str, streams: int, steps: int) -> dict[str, float]:
    """One run: so many streams of so many tokens at once."""
    path, body = WAYS[way]
    before, cpu_before = server.sample().counters, server.cpu_seconds()
    start = _start_chat if path == _CHAT else _start_job
    sockets = [start(server.url, {**body, "max_tokens": steps}, number) for number in range(streams)]
    pieces = read_until_closed(sockets, lambda data: data.endswith(b"0\r\n\r\n"))
    cpu, after = server.cpu_seconds() - cpu_before, server.sample().counters
    for sock, reads in zip(sockets, pieces, strict=True):
        sock.close()
        stream = b"".join(data for _, data in reads)
        frames = stream.count(b'"content"' if path == _CHAT else b'"type":"token"')
        if frames != steps or b"[DONE]" not in stream:
            raise SystemExit(f"A stream of {way} brought {frames} frames for {steps} tokens.")
    tokens = after["tokens_drained"] - before["tokens_drained"]
    return {
        "cpu_us": cpu * 1e6,
        "direct_share": (after["direct_tokens"] - before["direct_tokens"]) / tokens,
        "drains_per_step": (after["drains"] - before["drains"]) / steps,
    }


def _start_chat(url: str, body: dict[str, Any], number: int) -> socket.socket:
    return _send(http_request(url, _CHAT, {**body, "messages": [{"role": "user", "content": f"stream {number}"}]}))


def _start_job(url: str, body: dict[str, Any], number: int) -> socket.socket:
    """Start a job, and ask for its stream on the same connection."""
    sock = _send(http_request(url, _JOBS, {**body, "prompt": f"stream {number}"}))
    answer = b""
    while not answer.endswith(b"}"):
        answer += sock.recv(65536)
    sse_url = json.loads(answer.partition(b"\r\n\r\n")[2])["sse_url"]
    sock.sendall(f"GET {sse_url} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return sock


def _send(target: tuple[str, int, bytes]) -> socket.socket:
    host, port, request = target
    sock = socket.create_connection((host, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(request)
    return sock


def measure_way(server: OwnServer, way: str, streams: int, steps: int) -> dict[str, float]:
    """Streams of `steps` tokens, and of one."""
    whole, start = measure(server, way, streams, steps), measure(server, way, streams, 1)
    return {
        "cpu_us_per_frame": whole["cpu_us"] / (streams * steps),
        "cpu_us_per_request": start["cpu_us"] / streams,
        "cpu_us_per_further_frame": (whole["cpu_us"] - start["cpu_us"]) / (streams * (steps - 1)),
        "direct_share": whole["direct_share"],
        "drains_per_step": whole["drains_per_step"],
    }


def run(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All ways in turn, round by round; the medians."""
    server = OwnServer("--model", "synthetic", "--synthetic-step-ms", str(options.step_ms), "--no-log-requests")
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    try:
        for way in WAYS:
            measure_way(server, way, options.streams, _WARM_STEPS)
        for number in range(options.rounds):
            progress(f"round {number + 1}/{options.rounds}")
            for way in rotated(list(WAYS), number):
                rows[way].append(measure_way(server, way, options.streams, options.steps))
    finally:
        server.stop()
    return {
        way: {key: round(statistics.median(row[key] for row in runs), 3) for key in runs[0]}
        for way, runs in rows.items()
    }


def table(ways: dict[str, dict[str, float]]) -> str:
    """The medians in Markdown."""
    head = "| way | CPU per frame | per request | per further frame | native | drains per step |\n" + "|---" * 6 + "|\n"
    rows = "".join(
        f"| {way} | {row['cpu_us_per_frame']:.2f} us | {row['cpu_us_per_request']:.0f} us | "
        f"{row['cpu_us_per_further_frame']:.2f} us | {row['direct_share']:.0%} | "
        f"{row['drains_per_step']:.2f} |\n"
        for way, row in ways.items()
    )
    return head + rows + disturbed({way: row["drains_per_step"] for way, row in ways.items()})


def main() -> None:
    """Measure all ways in turn."""
    parser = argument_parser(__doc__, "jobs.{json,md}", rounds=5)
    parser.add_argument("--streams", type=int, default=64, help="at once (default %(default)s)")
    parser.add_argument("--step-ms", type=float, default=10.0, help="cadence of the model (default %(default)s)")
    parser.add_argument("--steps", type=int, default=500, help="tokens per stream (default %(default)s)")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error(f"--steps {options.steps}: at least 2")
    allow_many_files()
    ways = run(options)
    result = {
        "benchmark": "jobs",
        "streams": options.streams,
        "step_ms": options.step_ms,
        "steps": options.steps,
        "rounds": options.rounds,
        "ways": ways,
    }
    finish(options, "jobs", "The jobs protocol", table(ways), result, preface=f"Made by `{command_line()}`; ")


if __name__ == "__main__":
    main()
