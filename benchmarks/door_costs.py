"""What single requests cost a server, and what running streams feel of them.

Owns the measurement. Beside the requests of `door_cases.py` it has what takes several connections: eight large texts
that are given up, and many requests aborted in prefill; and /health beside the latter. Does not know shapes.
"""

from __future__ import annotations

import re
import socket
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from door_cases import BODY_BYTES, shapes
from door_clients import Client, Felt, watch
from door_servers import Peak
from faulty_server import FaultyServer, hang_up, memory_kb
from own_server import cpu_seconds
from program import progress
from sse_client import http_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from door_clients import Address

STREAMS = 8
QUIET = "no request"
_STREAM_TOKENS = 8000
_PATIENCE = 60.0  # seconds
_PAUSE = 0.15  # seconds between two requests
_AFTER = 0.05  # seconds behind an answer that still belong to it
_SETTLED = 1.0  # seconds in which the work for clients that have left is over
_SERVER_SAYS = ("wakeup", "loop_lag", "step")  # histograms of the arena
_PEAK_PERIOD = 0.005  # seconds
_GIVEN_UP, _GIVEN_UP_AFTER = 8, 0.3  # connections, and seconds
BURST, AT_ONCE = 600, 100
_BURST_BYTES = 6000
_ABORTED_AFTER = 0.05  # seconds: the first token of so many comes later

Answer = tuple[int, str]  # its status, and the error's code


class _Work(NamedTuple):
    name: str
    do: Callable[[Address], Answer]


def measure(model: str, repeats: int, only: str) -> list[dict[str, Any]]:
    """A row for each case whose name holds `only`, and one without a request, against one server of `model`."""
    server = FaultyServer(model, "--no-log-requests")
    works = [_Work(QUIET, lambda _: _nothing())]
    works += [_Work(case.name, _Request(case.path, case.body)) for case in shapes()]
    works += [_Work("8 x 2 MiB of words at once, given up after 0.3 s", _give_up), _Work(_burst_name(), _burst)]
    rows: list[dict[str, Any]] = []
    try:
        for work in works:
            if work.name == QUIET or only in work.name:
                progress(f"{model}: {work.name}")
                idle = rows[0]["cpu_ms_per_s"] if rows else 0.0
                rows.append({"model": model, **_measure(server, work, repeats, idle)})
    finally:
        server.stop()
    return rows


def _measure(server: FaultyServer, work: _Work, repeats: int, idle: float) -> dict[str, Any]:
    """One case. `idle` is what the streams alone cost, in ms of CPU per second; it is taken off."""
    watcher = Client(watch, server.address, server.request("a stream", _STREAM_TOKENS), STREAMS, 0)
    answer, seconds, cpu, peak = (0, ""), [], [], 0
    before_kb = memory_kb(server.pid)
    spent, walls = 0.0, 0.0
    longest = dict.fromkeys(_SERVER_SAYS, 0.0)
    for number in range(repeats):
        watcher.tell(f"pause {number}")
        time.sleep(_PAUSE)
        watcher.tell(f"case {number}")
        before, held_kb = server.sample().histograms, memory_kb(server.pid)
        cpu_before, began = cpu_seconds(server.pid), time.monotonic()
        with Peak(server.pid, _PEAK_PERIOD) as most:
            answer = work.do(server.address)
            seconds.append(time.monotonic() - began)
            time.sleep(_AFTER)
        wall = time.monotonic() - began
        used = cpu_seconds(server.pid) - cpu_before
        spent, walls = spent + used, walls + wall
        cpu.append(used * 1e3 - idle * wall)
        peak = max(peak, most.kb - held_kb)
        after = server.sample().histograms
        for name in _SERVER_SAYS:
            longest[name] = max(longest[name], after[name].minus(before[name]).quantile(1.0) or 0.0)
    watcher.tell("after")
    time.sleep(_SETTLED)
    felt: dict[str, Felt] = watcher.end()
    if any(one.ended for one in felt.values()):
        raise SystemExit(f"A stream ended beside {work.name!r}.")
    worst, gaps, step = _gaps(felt)
    status, code = answer
    return {
        "case": work.name,
        "status": status,
        "code": code,
        "answer_ms": round(statistics.median(seconds) * 1e3, 1),
        "cpu_ms": round(statistics.median(cpu), 1),
        "cpu_ms_per_s": round(spent / walls * 1e3, 2),
        "peak_kb": peak,
        "left_kb": memory_kb(server.pid) - before_kb,
        "step_ms": round(step, 2),
        "excess_p99_ms": round(max(0.0, _quantile(gaps, 0.99) - step), 2),
        "excess_worst_median_ms": round(statistics.median(worst) - step, 2),
        "excess_max_ms": round(max(worst) - step, 2),
        **{f"{name}_max_ms": round(value / 1e6, 2) for name, value in longest.items()},
    }


def _gaps(felt: dict[str, Felt]) -> tuple[list[float], list[float], float]:
    """The largest gap of each repetition, all gaps beside requests, and the step (the median between them), in ms.

    The gap of each stream that goes on when a repetition ends belongs to it.
    """
    phases = list(felt)
    cases = []
    for number, name in enumerate(phases):
        if name.startswith("case"):
            cases.append([gap for gaps in felt[name].gaps for gap in gaps])
            for stream in range(STREAMS):
                later = (felt[after].gaps[stream] for after in phases[number + 1 :])
                cases[-1] += next((gaps[:1] for gaps in later if gaps), [])
    pauses = [gap for name in phases if name.startswith("pause") for gaps in felt[name].gaps for gap in gaps]
    return [max(gaps) for gaps in cases], [gap for gaps in cases for gap in gaps], statistics.median(pauses)


def _quantile(values: list[float], fraction: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def _nothing() -> Answer:
    time.sleep(0.5)
    return 0, ""


class _Request:
    """One request on a connection of its own, until it is answered."""

    def __init__(self, path: str, body: Callable[[], bytes]) -> None:
        self._path, self._make_body = path, body
        self._bytes = b""

    def __call__(self, address: Address) -> Answer:
        if not self._bytes:
            self._bytes = _post(self._path, self._make_body())
        seen = bytearray()
        with socket.create_connection(address, timeout=_PATIENCE) as sock:
            try:
                sock.sendall(self._bytes)
                while piece := sock.recv(262_144):
                    seen += piece
            except OSError as error:
                return 0, type(error).__name__
        return _answer_of(bytes(seen))


def _post(path: str, body: bytes) -> bytes:
    assert len(body) <= BODY_BYTES, f"{path}: {len(body)} bytes"
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _answer_of(seen: bytes) -> Answer:
    code = re.search(rb'"code": ?"(\w+)"', seen[-1000:])
    return int(seen[9:12] or b"0"), code[1].decode() if code else ""


def _give_up(address: Address) -> Answer:
    """Eight large texts at once, whose clients leave; returns when the server has had time for what it does then."""
    [body] = [case.body() for case in shapes() if case.name == "2 MiB of words, /tokenize"]
    request = _post("/tokenize", body)
    sockets = []
    for _ in range(_GIVEN_UP):
        sock = socket.create_connection(address, timeout=_PATIENCE)
        sock.setblocking(False)
        sockets.append((sock, memoryview(request)))
    deadline = time.monotonic() + _GIVEN_UP_AFTER
    while time.monotonic() < deadline:
        sockets = [(sock, _send_some(sock, left)) for sock, left in sockets]
        time.sleep(0.001)
    for sock, _ in sockets:
        hang_up(sock)
    time.sleep(_SETTLED)
    return 0, "given up"


def _send_some(sock: socket.socket, left: memoryview) -> memoryview:
    try:
        return left[sock.send(left) :] if left else left
    except BlockingIOError:
        return left


def _burst_name() -> str:
    return f"{BURST} POSTs of 6 KB, {AT_ONCE} at once, aborted in prefill"


def _burst(address: Address) -> Answer:
    """Each has another prompt, so that none finds another one's in the cache."""
    url = f"http://{address[0]}:{address[1]}"
    words = "".join(f"{index * 7919 % 100_003:05} " for index in range(_BURST_BYTES // 6))
    for batch in range(BURST // AT_ONCE):
        sockets = []
        for number in range(AT_ONCE):
            prompt = f"{time.monotonic_ns()} {batch} {number} " + words
            request = http_request(url, "/v1/completions", {"prompt": prompt[:_BURST_BYTES], "stream": True})[2]
            sock = socket.create_connection(address, timeout=_PATIENCE)
            sock.sendall(request)
            sockets.append(sock)
        time.sleep(_ABORTED_AFTER)
        for sock in sockets:
            hang_up(sock)
    time.sleep(_SETTLED)
    return 0, "aborted"


def measure_burst(model: str, repeats: int, every_ns: int) -> dict[str, Any]:
    """What /health takes while requests are aborted, and before, in ms."""
    server = FaultyServer(model, "--no-log-requests")
    try:
        watcher = Client(watch, server.address, server.request("a stream", _STREAM_TOKENS), 1, every_ns)
        watcher.tell("quiet")
        time.sleep(2.0)
        watcher.tell("burst")
        for _ in range(repeats):
            _burst(server.address)
        felt = watcher.end()
    finally:
        server.stop()
    return {"model": model, "requests": repeats * BURST} | {phase: summary(felt[phase]) for phase in ("quiet", "burst")}


def summary(felt: Felt) -> dict[str, Any]:
    """Of /health, of the gaps of all streams, and of the asking itself, in ms."""
    return {
        "health": quantiles(felt.health) | {"failures": felt.failures},
        "itl": quantiles([gap for gaps in felt.gaps for gap in gaps]),
        "asked_late": quantiles(felt.late),
    }


def quantiles(values: list[float]) -> dict[str, Any]:
    """p50, p99 and max, and of how many; None where there are none."""
    return {
        "count": len(values),
        **{
            name: round(_quantile(values, fraction), 2) if values else None
            for name, fraction in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        },
    }
