"""Delivery latency: from the engine's commit of a token to its bytes read by the client, beside the machine's floor.

    python benchmarks/bench_delivery.py --streams 1,16,64,256 --step-ms 10 --save

Open loop: the synthetic model commits one token per stream on a fixed cadence, whatever the clients do. Every latency
is measured twice: against the commit stamped in the frame (`timing.committed_ns`) and against the *intended* time of
the step, so that a late step is not forgiven (no coordinated omission). Step k is intended at t0 + k * step, where t0
is the latest time for which no commit of the stream was early.

The floor, in the same run, with the same reader and the same number of sockets: a ticker process stamps and writes an
eventfd on the same cadence, a sleeping process wakes and sends one byte to every socket. `wake` is stamp -> that
process runs; `hop` is stamp -> byte read by the client. What rbee adds is *delivery - hop*.

All stamps are CLOCK_MONOTONIC of one machine. Percentiles come from an HdrHistogram with three significant digits.
Output: a table on stderr, one JSON line on stdout; --save also writes both to benchmarks/results.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import re
import resource
import select
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdrh.histogram import HdrHistogram
from machine import describe
from sse_client import Stream, http_request

if TYPE_CHECKING:
    from collections.abc import Callable

_WARMUP_STEPS = 50
_PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}


def summary_us(values_ns: list[int]) -> dict[str, float]:
    """p50, p99, p99.9 and max of `values_ns`, in microseconds."""
    histogram = HdrHistogram(1, 60_000_000_000, 3)
    for value in values_ns:
        histogram.record_value(max(1, value))
    return {name: histogram.get_value_at_percentile(percent) / 1e3 for name, percent in _PERCENTILES.items()}


def read_until_closed(sockets: list[socket.socket], ended: Callable[[bytes], bool]) -> list[list[tuple[int, bytes]]]:
    """Read all sockets from one epoll loop, stamping every read; a socket is done at EOF or when `ended(piece)`."""
    poller = select.epoll()
    pieces: dict[int, list[tuple[int, bytes]]] = {}
    by_fd = {sock.fileno(): sock for sock in sockets}
    for fd, sock in by_fd.items():
        sock.setblocking(False)
        pieces[fd] = []
        poller.register(fd, select.EPOLLIN)
    open_fds = set(by_fd)
    while open_fds:
        for fd, _ in poller.poll():
            data = by_fd[fd].recv(65536)
            pieces[fd].append((time.monotonic_ns(), data))
            if not data or ended(data):
                poller.unregister(fd)
                open_fds.discard(fd)
    poller.close()
    return [pieces[sock.fileno()] for sock in sockets]


# ---- the floor -------------------------------------------------------------------------------------------------


def _tick(doorbell: int, stamps: mmap.mmap, steps: int, step_ns: int) -> None:
    """Stamp and ring the eventfd `steps` times on an absolute cadence."""
    start = time.monotonic_ns()
    for step in range(steps):
        delay = start + (step + 1) * step_ns - time.monotonic_ns()
        if delay > 0:
            time.sleep(delay / 1e9)
        struct.pack_into("<q", stamps, step * 8, time.monotonic_ns())
        os.eventfd_write(doorbell, 1)


def _wake_and_send(doorbell: int, wakes: mmap.mmap, sockets: list[socket.socket], steps: int) -> None:
    """Sleep in read(eventfd); on every wake send one byte to each socket per step rung."""
    step = 0
    while step < steps:
        rung = os.eventfd_read(doorbell)
        now = time.monotonic_ns()
        for _ in range(rung):
            struct.pack_into("<q", wakes, step * 8, now)
            step += 1
        for sock in sockets:
            sock.send(b"." * rung)
    for sock in sockets:
        sock.close()


def _fork(run: Callable[[], None]) -> int:
    """Run `run` in a child process that leaves without cleaning up ours."""
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)
    return pid


def measure_floor(streams: int, steps: int, step_ms: float) -> dict[str, Any]:
    """One run of the floor: wake and hop latencies, and the sender's CPU per one-byte send."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        readers, senders = [], []
        for _ in range(streams):
            readers.append(socket.create_connection(listener.getsockname()))
            sender, _ = listener.accept()
            sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            senders.append(sender)
    stamps, wakes = mmap.mmap(-1, steps * 8), mmap.mmap(-1, steps * 8)
    doorbell = os.eventfd(0)
    sender_pid = _fork(lambda: _wake_and_send(doorbell, wakes, senders, steps))
    for sender in senders:
        sender.close()
    ticker_pid = _fork(lambda: _tick(doorbell, stamps, steps, round(step_ms * 1e6)))
    pieces = read_until_closed(readers, lambda _: False)
    os.waitpid(ticker_pid, 0)
    _, status, usage = os.wait4(sender_pid, 0)
    if status:
        raise SystemExit("The floor's sender process failed; its error is above.")
    os.close(doorbell)
    stamped = struct.unpack(f"<{steps}q", stamps[:])
    woken = struct.unpack(f"<{steps}q", wakes[:])
    hops = []
    for reader, reads in zip(readers, pieces, strict=True):
        step = 0
        for read_ns, data in reads:
            for _ in data:
                if step >= _WARMUP_STEPS:
                    hops.append(read_ns - stamped[step])
                step += 1
        if step != steps:
            raise SystemExit(f"The floor lost bytes: {step} of {steps} read.")
        reader.close()
    pairs = list(zip(stamped, woken, strict=True))[_WARMUP_STEPS:]
    return {
        "wake_us": summary_us([wake - stamp for stamp, wake in pairs]),
        "hop_us": summary_us(hops),
        "sender_cpu_us_per_send": round((usage.ru_utime + usage.ru_stime) * 1e6 / (steps * streams), 2),
    }


# ---- rbee ------------------------------------------------------------------------------------------------------


class Server:
    """A `rbee serve --model synthetic` of our own, on a free port."""

    def __init__(self, step_ms: float, extra: list[str]) -> None:
        command = [sys.executable, "-m", "rbee.cli", "serve", "--model", "synthetic", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--synthetic-step-ms", str(step_ms), *extra], stdout=subprocess.PIPE, text=True
        )
        self.url = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if match := re.search(r"listening on (http://\S+)", line):
                self.url = match.group(1)
            if "rbee: ready" in line:
                return
        raise SystemExit("rbee serve ended before it was ready; its error is above.")

    def cpu_seconds(self) -> float:
        """CPU time of the server process so far, without the engine's; the kernel's own clock for it, in ns."""
        clock = ctypes.c_int()
        if error := ctypes.CDLL(None).clock_getcpuclockid(self.process.pid, ctypes.byref(clock)):
            raise OSError(error, "clock_getcpuclockid failed")
        return time.clock_gettime(clock.value)

    def stop(self) -> None:
        """End it as an operator would."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)


def measure_rbee(server: Server, streams: int, steps: int, step_ms: float) -> dict[str, Any]:
    """One run of rbee: delivery latencies, and the server's CPU per frame."""
    sockets = []
    for number in range(streams):
        payload = {
            "model": "synthetic",
            "prompt": f"stream {number}",
            "max_tokens": steps,
            "stream": True,
            "stream_options": {"include_timing": True},
        }
        host, port, request = http_request(server.url, "/v1/completions", payload)
        sock = socket.create_connection((host, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(request)
        sockets.append(sock)
    cpu_before = server.cpu_seconds()
    pieces = read_until_closed(sockets, lambda data: data.endswith(b"0\r\n\r\n"))
    cpu = server.cpu_seconds() - cpu_before
    delivery, intended, lateness, spans = [], [], [], []
    step_ns = round(step_ms * 1e6)
    for sock, reads in zip(sockets, pieces, strict=True):
        sock.close()
        stream = Stream(pieces=reads)
        frames = stream.frames()
        if stream.error:
            raise SystemExit(f"A stream failed: {stream.error}")
        timed = [(frame.read_ns, json.loads(frame.data)) for frame in frames if frame.data != "[DONE]"]
        stamps = [(read_ns, chunk["timing"]["committed_ns"]) for read_ns, chunk in timed if chunk["choices"]]
        if len(stamps) != steps:
            raise SystemExit(f"A stream brought {len(stamps)} frames for {steps} tokens.")
        measured = stamps[_WARMUP_STEPS:]
        start = min(committed_ns - index * step_ns for index, (_, committed_ns) in enumerate(measured))
        for index, (read_ns, committed_ns) in enumerate(measured):
            due = start + index * step_ns
            delivery.append(read_ns - committed_ns)
            intended.append(read_ns - due)
            lateness.append(committed_ns - due)
        spans.append((measured[-1][1] - measured[0][1]) / (len(measured) - 1) / 1e6)
    return {
        "delivery_us": summary_us(delivery),
        "intended_us": summary_us(intended),
        "commit_lateness_us": summary_us(lateness),
        "achieved_step_ms": round(statistics.mean(spans), 4),
        "server_cpu_us_per_frame": round(cpu * 1e6 / (steps * streams), 2),
    }


# ---- the run ---------------------------------------------------------------------------------------------------


def _median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every figure over the rounds."""
    return {
        key: _median([row[key] for row in rows])
        if isinstance(rows[0][key], dict)
        else round(statistics.median(row[key] for row in rows), 2)
        for key in rows[0]
    }


def _table(levels: list[dict[str, Any]]) -> str:
    head = ("streams", "what", "p50", "p99", "p99.9", "max")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for level in levels:
        rows = {
            "floor: eventfd wake": level["floor"]["wake_us"],
            "floor: wake + one-byte hop": level["floor"]["hop_us"],
            "rbee: commit -> read": level["rbee"]["delivery_us"],
            "rbee: intended step -> read": level["rbee"]["intended_us"],
            "rbee: intended step -> commit": level["rbee"]["commit_lateness_us"],
        }
        for name, figures in rows.items():
            cells = " | ".join(f"{figures[key]:,.0f}" for key in _PERCENTILES)
            lines.append(f"| {level['streams']} | {name} | {cells} |")
        lines.append(
            f"| {level['streams']} | CPU per frame: rbee server / bare one-byte send | "
            f"{level['rbee']['server_cpu_us_per_frame']} / {level['floor']['sender_cpu_us_per_send']} | | | |"
        )
    return "\n".join(lines)


def _save(result: dict[str, Any], table: str) -> None:
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "delivery.json").write_text(json.dumps(result, indent=1) + "\n")
    facts = "\n".join(f"* {key}: {value}" for key, value in result["machine"].items())
    text = (
        f"# Delivery latency, microseconds\n\nMade by `python {' '.join(sys.argv)}`; {result['steps']} steps of "
        f"{result['step_ms']} ms per level, median of {result['rounds']} rounds; floor and rbee in turn, in one run.\n"
        f"What each row means: docstring of `benchmarks/bench_delivery.py`.\n\n{table}\n\n## Machine\n\n{facts}\n"
    )
    (folder / "delivery.md").write_text(text)


def main() -> None:
    """Measure floor and rbee in turn at every number of streams."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="1,16,64,256", help="comma-separated levels (default %(default)s)")
    parser.add_argument("--step-ms", type=float, default=10.0, help="cadence (default %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="tokens per stream and level (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all levels (default %(default)s)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/delivery.{json,md}")
    parser.add_argument("--serve-arg", action="append", default=[], help="one more argument for `rbee serve`")
    options = parser.parse_args()
    if options.steps <= 2 * _WARMUP_STEPS:
        parser.error(f"--steps {options.steps}: at least {2 * _WARMUP_STEPS + 1}, the first {_WARMUP_STEPS} warm up")
    streams = [int(level) for level in options.streams.split(",")]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    floors: dict[int, list[dict[str, Any]]] = {level: [] for level in streams}
    ours: dict[int, list[dict[str, Any]]] = {level: [] for level in streams}
    server = Server(options.step_ms, options.serve_arg)
    try:
        for number in range(options.rounds):
            for level in streams:
                print(f"round {number + 1}/{options.rounds}, {level} streams", file=sys.stderr)
                floors[level].append(measure_floor(level, options.steps, options.step_ms))
                ours[level].append(measure_rbee(server, level, options.steps, options.step_ms))
    finally:
        server.stop()
    levels = [{"streams": level, "floor": _median(floors[level]), "rbee": _median(ours[level])} for level in streams]
    result = {
        "benchmark": "delivery",
        "step_ms": options.step_ms,
        "steps": options.steps,
        "rounds": options.rounds,
        "levels": levels,
        "machine": describe(),
    }
    table = _table(levels)
    print(table, file=sys.stderr)
    if options.save:
        _save(result, table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
