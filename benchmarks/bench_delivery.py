"""Delivery latency: from the engine's commit of a token to its bytes read by the client, beside the machine's floor.

    python benchmarks/bench_delivery.py --save

Open loop: the synthetic model commits one token per stream on a fixed cadence, whatever the clients do. Every latency
is measured twice: from the commit stamped in the frame (`timing.committed_ns`), and from the *intended* time of the
step, so that a late step is not forgiven (no coordinated omission). Step k is intended at t0 + k * step; t0 is the
latest time for which no commit of the stream was early. `last` is the stream of each step that is served last.

The floor is that of `delivery_floor.py`, in the same run, with the same reader, as many sockets and frames of the same
size: `wake` is a bare eventfd wake, `hop` is the wake and a bare send to every socket. rbee adds *delivery - hop*.
Three servers take turns in every round: the default; --busy-poll; and the default with a stop string, which takes the
frames through Python.

Where the time goes is counted by the server in its arena and read from outside:

* `wakeup`: commit until the drain begins.
* `render`: detokenizing and framing in one pass. `send`: the system call. `drain`: the rest of a drain.
* `loop lag`: how late a timer of the event loop was; timers tick in milliseconds.
* `gc`: collections of Python's garbage collector in the server.

The rest of the server's CPU time is the event loop, the kernel's part of sleeping and waking, and the requests.

All stamps are CLOCK_MONOTONIC of one machine. Percentiles come from an HdrHistogram with three significant digits, the
server's own from buckets of 1/16.
"""

from __future__ import annotations

import json
import socket
import statistics
from typing import TYPE_CHECKING, Any

from delivery_floor import last_of_each_step, measure_floor, read_until_closed, summary_us
from delivery_report import tables
from own_server import OwnServer
from program import allow_many_files, argument_parser, command_line, finish, integers, numbers, progress
from sse_client import Stream, http_request

if TYPE_CHECKING:
    import argparse

    from rbee.transport.observer import Sample

_WARMUP_STEPS = 50
_FRAME_BYTES = 225  # of a chunk with one token as rbee writes it, `timing` included
_NEVER = "\x00"  # a stop string that the synthetic model does not write

WAYS: dict[str, dict[str, Any]] = {
    "default": {"serve": [], "body": {}},
    "busy-poll": {"serve": ["--busy-poll"], "body": {}},
    "through Python": {"serve": [], "body": {"stop": _NEVER}},
}


def measure_rbee(server: OwnServer, streams: int, steps: int, step_ms: float, body: dict[str, Any]) -> dict[str, Any]:
    """One run of rbee: delivery latencies, the server's CPU per frame, and its parts by the server's counters."""
    before, cpu_before = server.sample(), server.cpu_seconds()
    sockets = [_start_stream(server.url, number, steps, body) for number in range(streams)]
    pieces = read_until_closed(sockets, lambda data: data.endswith(b"0\r\n\r\n"))
    cpu, after = server.cpu_seconds() - cpu_before, server.sample()
    delivery, intended, lateness, spans = [], [], [], []
    step_ns = round(step_ms * 1e6)
    for sock, reads in zip(sockets, pieces, strict=True):
        sock.close()
        stamps = _stamps(Stream(pieces=reads))
        if len(stamps) != steps:
            raise SystemExit(f"A stream brought {len(stamps)} frames for {steps} tokens.")
        measured = stamps[_WARMUP_STEPS:]
        start = min(committed_ns - index * step_ns for index, (_, committed_ns) in enumerate(measured))
        delivery.append([read_ns - committed_ns for read_ns, committed_ns in measured])
        for index, (read_ns, committed_ns) in enumerate(measured):
            intended.append(read_ns - start - index * step_ns)
            lateness.append(committed_ns - start - index * step_ns)
        spans.append((measured[-1][1] - measured[0][1]) / (len(measured) - 1) / 1e6)
    return {
        "delivery_us": summary_us([latency for stream in delivery for latency in stream]),
        "last_us": summary_us(last_of_each_step(delivery)),
        "intended_us": summary_us(intended),
        "commit_lateness_us": summary_us(lateness),
        "achieved_step_ms": round(statistics.mean(spans), 4),
        "server_cpu_us_per_frame": round(cpu * 1e6 / (steps * streams), 2),
        "server_says": _split(before, after),
    }


def _start_stream(url: str, number: int, steps: int, body: dict[str, Any]) -> socket.socket:
    payload = {
        "model": "synthetic",
        "prompt": f"stream {number}",
        "max_tokens": steps,
        "stream": True,
        "stream_options": {"include_timing": True},
        **body,
    }
    host, port, request = http_request(url, "/v1/completions", payload)
    sock = socket.create_connection((host, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(request)
    return sock


def _stamps(stream: Stream) -> list[tuple[int, int]]:
    """When each token's frame was read, and when the token was committed."""
    frames = stream.frames()
    if stream.error:
        raise SystemExit(f"A stream failed: {stream.error}")
    timed = [(frame.read_ns, json.loads(frame.data)) for frame in frames if frame.data != "[DONE]"]
    return [(read_ns, chunk["timing"]["committed_ns"]) for read_ns, chunk in timed if chunk["choices"]]


def _split(before: Sample, after: Sample) -> dict[str, Any]:
    """Where the server's time went between two samples of its arena."""
    counted = {name: value - before.counters[name] for name, value in after.counters.items()}
    tokens = counted["tokens_drained"]
    drains = counted["drains"]
    drained, rendered, sent = (counted[name] for name in ("drain_ns", "render_ns", "send_ns"))
    steps = counted["steps"]
    collections = counted["gc_pauses"]
    wakeup, lag = (after.histograms[name].minus(before.histograms[name]) for name in ("wakeup", "loop_lag"))
    return {
        "wakeup_p50_us": _us(wakeup.quantile(0.5)),
        "wakeup_p99_us": _us(wakeup.quantile(0.99)),
        "drain_us_per_token": round((drained - rendered - sent) / tokens / 1e3, 3),
        "render_us_per_token": round(rendered / tokens / 1e3, 3),
        "send_us_per_token": round(sent / tokens / 1e3, 3),
        "direct_share": round(counted["direct_tokens"] / tokens, 3),
        "drains_per_step": round(drains / steps, 3),
        "wakes_written_per_step": round(counted["wakes_written"] / steps, 3),
        "loop_lag_p99_us": _us(lag.quantile(0.99)),
        "loop_lag_max_us": _us(lag.quantile(1.0)),
        "gc_collections": collections,
        "gc_mean_us": round(counted["gc_pause_ns"] / max(1, collections) / 1e3, 1),
        "stale_wakeups": counted["stale_wakeups"],
    }


def _us(nanoseconds: float | None) -> float:
    return round((nanoseconds or 0) / 1e3, 1)


def _median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every figure over the rounds."""
    return {
        key: _median([row[key] for row in rows])
        if isinstance(rows[0][key], dict)
        else round(statistics.median(row[key] for row in rows), 3)
        for key in rows[0]
    }


def _measure(step_ms: float, streams: list[int], options: argparse.Namespace) -> list[dict[str, Any]]:
    """All levels at one cadence: floor and every way of rbee in turn, round by round; the medians."""
    steps = options.steps
    synthetic = ["--model", "synthetic", "--synthetic-step-ms", str(step_ms)]
    servers = {name: OwnServer(*synthetic, *way["serve"], *options.serve_arg) for name, way in WAYS.items()}
    rows: dict[int, dict[str, list[dict[str, Any]]]] = {
        level: {name: [] for name in ("floor", *WAYS)} for level in streams
    }
    try:
        for number in range(options.rounds):
            for level in streams:
                progress(f"round {number + 1}/{options.rounds}, {step_ms:g} ms, {level} streams")
                rows[level]["floor"].append(measure_floor(level, steps, step_ms, _FRAME_BYTES, _WARMUP_STEPS))
                for name, way in WAYS.items():
                    rows[level][name].append(measure_rbee(servers[name], level, steps, step_ms, way["body"]))
    finally:
        for server in servers.values():
            server.stop()
    return [
        {"step_ms": step_ms, "streams": level, **{name: _median(runs) for name, runs in rows[level].items()}}
        for level in streams
    ]


def main() -> None:
    """Measure floor and rbee in turn at every cadence and number of streams."""
    parser = argument_parser(__doc__, "delivery.{json,md}", rounds=3)
    parser.add_argument("--streams", type=integers, default="1,16,64,256", help="levels (default %(default)s)")
    parser.add_argument("--step-ms", type=numbers, default="10,20", help="cadences (default %(default)s)")
    parser.add_argument("--steps", type=int, default=500, help="tokens per stream and level (default %(default)s)")
    parser.add_argument("--serve-arg", action="append", default=[], help="one more argument for `rbee serve`")
    options = parser.parse_args()
    if options.steps <= 2 * _WARMUP_STEPS:
        parser.error(f"--steps {options.steps}: at least {2 * _WARMUP_STEPS + 1}, the first {_WARMUP_STEPS} warm up")
    allow_many_files()
    levels = [level for step_ms in options.step_ms for level in _measure(step_ms, options.streams, options)]
    result = {
        "benchmark": "delivery",
        "steps": options.steps,
        "rounds": options.rounds,
        "frame_bytes": _FRAME_BYTES,
        "levels": levels,
    }
    finish(options, "delivery", "Delivery latency", tables(result), result, preface=f"Made by `{command_line()}`; ")


if __name__ == "__main__":
    main()
