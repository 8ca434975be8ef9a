"""The least that delivering costs on this machine: wake a sleeping process and send the bytes, nothing else.

A ticker process stamps and writes an eventfd on an absolute cadence; a process that sleeps in read(eventfd) wakes and
sends `frame_bytes` to every socket. The reader is the one that reads rbee's streams too.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

from hdrh.histogram import HdrHistogram

if TYPE_CHECKING:
    from collections.abc import Callable

PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}


def summary_us(values_ns: list[int]) -> dict[str, float]:
    """p50, p99, p99.9 and max of `values_ns`, in microseconds."""
    histogram = HdrHistogram(1, 60_000_000_000, 3)
    for value in values_ns:
        histogram.record_value(max(1, value))
    return {name: histogram.get_value_at_percentile(percent) / 1e3 for name, percent in PERCENTILES.items()}


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


def last_of_each_step(latencies: list[list[int]]) -> list[int]:
    """Per step the latency of the stream that was served last, from one list per stream."""
    return [max(step) for step in zip(*latencies, strict=True)]


def measure_floor(streams: int, steps: int, step_ms: float, frame_bytes: int, warmup: int) -> dict[str, Any]:
    """One run of the floor.

    Returns:
        `wake_us` (stamp -> the process runs), `hop_us` (stamp -> the frame has been read), `last_us` (the same for the
        last socket of each step), `cpu_us_per_send` of the sending process.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        readers, senders = [], []
        for _ in range(streams):
            readers.append(socket.create_connection(listener.getsockname()))
            sender, _ = listener.accept()
            sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            senders.append(sender)
    stamps, wakes = mmap.mmap(-1, steps * 8), mmap.mmap(-1, steps * 8)
    doorbell = os.eventfd(0)
    frame = b"." * frame_bytes
    sender_pid = _fork(lambda: _wake_and_send(doorbell, wakes, senders, steps, frame))
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
    hops = [_hops(reads, stamped, frame_bytes)[warmup:] for reads in pieces]
    for reader in readers:
        reader.close()
    return {
        "wake_us": summary_us([wake - stamp for stamp, wake in list(zip(stamped, woken, strict=True))[warmup:]]),
        "hop_us": summary_us([hop for stream in hops for hop in stream]),
        "last_us": summary_us(last_of_each_step(hops)),
        "cpu_us_per_send": round((usage.ru_utime + usage.ru_stime) * 1e6 / (steps * streams), 2),
    }


def _hops(reads: list[tuple[int, bytes]], stamped: tuple[int, ...], frame_bytes: int) -> list[int]:
    """For each step, how long after its stamp the last byte of its frame was read."""
    hops: list[int] = []
    size = 0
    for read_ns, data in reads:
        size += len(data)
        while len(hops) < size // frame_bytes:
            hops.append(read_ns - stamped[len(hops)])
    if len(hops) != len(stamped):
        raise SystemExit(f"The floor lost bytes: {len(hops)} of {len(stamped)} frames read.")
    return hops


def _tick(doorbell: int, stamps: mmap.mmap, steps: int, step_ns: int) -> None:
    """Stamp and ring the eventfd `steps` times on an absolute cadence."""
    start = time.monotonic_ns()
    for step in range(steps):
        delay = start + (step + 1) * step_ns - time.monotonic_ns()
        if delay > 0:
            time.sleep(delay / 1e9)
        struct.pack_into("<q", stamps, step * 8, time.monotonic_ns())
        os.eventfd_write(doorbell, 1)


def _wake_and_send(doorbell: int, wakes: mmap.mmap, sockets: list[socket.socket], steps: int, frame: bytes) -> None:
    """Sleep in read(eventfd); on every wake send one frame to each socket per step rung."""
    step = 0
    while step < steps:
        rung = os.eventfd_read(doorbell)
        now = time.monotonic_ns()
        for _ in range(rung):
            struct.pack_into("<q", wakes, step * 8, now)
            step += 1
        for sock in sockets:
            sock.sendall(frame * rung)
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
