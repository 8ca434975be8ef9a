"""What writing a stream's frames costs: five ways from the same drain to the same sockets, measured in turn.

    python benchmarks/bench_frames.py --save            # about 10 minutes
    python benchmarks/bench_frames.py --streams 16 --steps 100 --rounds 1

The ways, and what each one is:

* `streaming_response`: Starlette's StreamingResponse over an async generator that an asyncio.Queue per stream feeds.
* `asgi_send`: an endpoint that awaits such a queue and calls ASGI's `send()` for what it gets.
* `protocol`: `rbee.server.http.protocol.StreamProtocol`; the drain callback writes to uvicorn's transport.
* `native`: an `rbee.transport.Outlet` on the ring; the drain itself renders and sends, without Python per token.
* `floor`: a bare non-blocking send(2) per socket of frames that were rendered before, by a Python loop in a process of
  its own that one eventfd per step wakes. No drain, no detokenizing, no HTTP server. Each send costs a method call of
  Python as well, so that a way in C++ can come out below it.

The first four have a real server: uvicorn with uvloop and httptools, without middleware (which would cost the first two
ways a coroutine more per frame, and the others nothing), `rbee.transport.Consumer` drained by
`rbee.server.link.engine_client.EngineClient` from `loop.add_reader`. The first three render with the same code, in the
drain callback, and differ in what becomes of the bytes; `native` renders the same bytes in C++. Tokens are the
synthetic model's, one byte of text each, through the detokenizer that the server uses for it.

Three processes: the engine publishes one token per stream on an absolute cadence, whatever the others do (open loop);
the server; the client (this one) reads all sockets from one epoll loop. Unless `--cpus any`, the server has a core of
its own and the other two share one, because where the scheduler puts them changes every figure.

Every figure is of the steps after the warm-up. They begin when the clients have all of the warm-up and the server's
clock has been read, and end when the clients have everything. Connecting, submitting and ending streams are outside.
A figure is the median over the rounds; in each round another way comes first.

* `cpu_us_per_frame`: difference of the server's process CPU clock (user and kernel, all threads) / frames.
* `above_floor_us`, `floor_ratio`: the same less, and divided by, the floor's at the same number of streams.
* `delivery_us`: from the commit stamp to the client's read of the frame, for every frame. The stamp is in the frame
  (`timing.committed_ns`) and must be the engine's own; the floor's frames carry one of the same length, and its
  stamps are those that the engine took before ringing.
* `intended_us`: from the time when the step was due, so that a late commit is not forgiven.
* `switches_per_step`: context switches of the server, voluntary and not (getrusage).
* `drains_per_step`: turns of the drain; of the floor, wakes. Well below 1, the server did not get its core in time and
  sent several steps together, which is cheaper per frame: `disturbed` names such ways, whose CPU is not comparable.
* `frame_bytes`: the mean of a frame's JSON, the same for all ways.

A client that does not get every token of its stream, in order, one frame each, ends the program.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import select
import signal
import socket
import statistics
import time
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.reduction import recv_handle, send_handle
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from frames_processes import RING_CAPACITY, WARMUP_STEPS, WAYS, Plan, Usage, run_engine, run_server
from machine import describe
from program import allow_many_files, argument_parser, command_line, core_pair, finish, integers, progress
from sse_client import Stream

from rbee.child import die_with_parent
from rbee.models import synthetic
from rbee.transport import Arena, create_doorbell

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

_PATIENCE = 60.0  # seconds that a process may take to start or to end, and the clients may get nothing
_TARGET_US = 6.0  # of CPU per frame above the floor
_UNDISTURBED = 0.95  # drains per step


# ---- one run ---------------------------------------------------------------------------------------------------


class _Child:
    """One of the other two processes, freshly started, and the connection to it; leaving `stack` kills it."""

    def __init__(self, stack: contextlib.ExitStack, run: Callable[..., None], plan: Plan, doorbell: int) -> None:
        self._name = f"{run.__name__.removeprefix('run_')} process of {plan.way}"
        self._control, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_child, args=(run, plan, theirs, os.getpid()), daemon=True)
        self._process.start()
        stack.callback(self._kill)
        theirs.close()
        assert self._process.pid is not None  # it is, before start()
        send_handle(self._control, doorbell, self._process.pid)

    @property
    def sentinel(self) -> int:
        """Readable when the process has ended."""
        return self._process.sentinel

    def send(self, message: object) -> None:
        """Send the process a command; SystemExit if it has ended."""
        with self._expected_alive():
            self._control.send(message)

    def receive(self) -> Any:
        """Return the process's next message; SystemExit if it ends or hangs instead."""
        if not wait([self._control], _PATIENCE):
            raise SystemExit(f"The {self._name} hangs: it sent nothing for {_PATIENCE:g} s.")
        with self._expected_alive():
            return self._control.recv()

    @contextlib.contextmanager
    def _expected_alive(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionResetError, BrokenPipeError):
            raise SystemExit(f"The {self._name} has ended; its error is above.") from None

    def join(self) -> None:
        """Wait for its end; SystemExit if that is not an orderly one."""
        self._process.join(_PATIENCE)
        if self._process.exitcode != 0:
            raise SystemExit(f"The {self._name} ended with {self._process.exitcode}; its error is above.")

    def _kill(self) -> None:
        self._process.kill()
        self._process.join()


def _child(run: Callable[..., None], plan: Plan, control: Connection, parent: int) -> None:
    """The start of a `_Child`: it ends with its parent, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not die_with_parent(parent):
        return
    if plan.cpus is not None:
        os.sched_setaffinity(0, {plan.cpus[run is run_server]})
    run(plan, recv_handle(control), control)


def measure(plan: Plan) -> dict[str, Any]:
    """One run of one way; its figures. SystemExit if a process failed or a stream is not as it must be."""
    with contextlib.ExitStack() as stack:
        doorbell = create_doorbell()
        stack.callback(os.close, doorbell)
        rings = -(-plan.streams // 64) * 64
        arena = Arena.create(num_rings=rings, ring_capacity=RING_CAPACITY, epoch=1)
        stack.callback(arena.close)
        stack.callback(arena.unlink)
        plan = replace(plan, arena=arena.name)
        server, engine = (_Child(stack, run, plan, doorbell) for run in (run_server, run_engine))
        address = server.receive()
        engine.receive()
        arena.unlink()
        sockets = []
        for stream in range(plan.streams):
            sock = stack.enter_context(socket.create_connection(address))
            sock.sendall(b"GET /%d HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n" % stream)
            sockets.append(sock)
        engine.send(server.receive())
        usages: list[Usage] = []

        def mark(then: str) -> None:
            server.send("mark")
            usages.append(server.receive())
            engine.send(then)

        marks = [
            (WARMUP_STEPS * plan.streams, lambda: mark("go")),
            (plan.tokens * plan.streams, lambda: mark("finish")),
        ]
        reads = _read(sockets, marks, (server, engine))
        start_ns, stamps = engine.receive()
        for child in (server, engine):
            child.send("stop")
            child.join()
    begin, last = usages
    frames = plan.steps * plan.streams
    return {
        "cpu_us_per_frame": (last.cpu_ns - begin.cpu_ns) / frames / 1e3,
        **latencies(plan, reads, start_ns, stamps),
        "switches_per_step": (last.switches - begin.switches) / plan.steps,
        "drains_per_step": (last.drains - begin.drains) / plan.steps,
        "frames": frames,
    }


def _read(
    sockets: list[socket.socket], marks: list[tuple[int, Callable[[], None]]], children: tuple[_Child, _Child]
) -> list[list[tuple[int, bytes]]]:
    """Read all sockets to their ends, stamping every read; call each mark's function after its number of frames."""
    by_fd = {sock.fileno(): sock for sock in sockets}
    reads: dict[int, list[tuple[int, bytes]]] = {fd: [(0, b"")] for fd in by_fd}
    left, received = len(sockets), 0
    with select.epoll() as poller:
        for fd, sock in by_fd.items():
            sock.setblocking(False)
            poller.register(fd, select.EPOLLIN)
        for child in children:
            poller.register(child.sentinel, select.EPOLLIN)
        while left:
            events = poller.poll(_PATIENCE)
            if not events:
                raise SystemExit(f"Nothing came for {_PATIENCE:g} s: frames are lost, or a process hangs.")
            if any(fd not in by_fd for fd, _ in events):
                raise SystemExit("The engine or the server has ended; its error is above.")
            for fd, _ in events:
                data = by_fd[fd].recv(65536)
                before = reads[fd][-1][1]
                reads[fd].append((time.monotonic_ns(), data))
                if not data:
                    if marks:
                        raise SystemExit("A stream has ended before its last token; an error of the server is above.")
                    poller.unregister(fd)
                    left -= 1
                received += data.count(b"\n\n") + (data.startswith(b"\n") and before.endswith(b"\n"))
            while marks and received >= marks[0][0]:
                marks.pop(0)[1]()
    return [reads[fd][1:] for fd in by_fd]


def latencies(plan: Plan, reads: list[list[tuple[int, bytes]]], start_ns: int, stamps: list[int]) -> dict[str, Any]:
    """Check every stream, then return its frames' latencies, `delivery_us` and `intended_us`, and their size."""
    delivery, intended, size = [], [], 0
    for number, pieces in enumerate(reads):
        stream = Stream(pieces=pieces)
        frames = stream.frames()
        if stream.error:
            raise SystemExit(f"{plan.way}: stream {number} failed: {stream.error}")
        chunks = [(frame, msgspec.json.decode(frame.data)) for frame in frames[:-1]]
        shown = [(frame, chunk) for frame, chunk in chunks if chunk["choices"][0]["delta"].get("content")]
        texts = [chunk["choices"][0]["delta"]["content"] for _, chunk in shown]
        if texts != [chr(token) for token in synthetic.expected_tokens([number], plan.tokens)]:
            raise SystemExit(f"{plan.way}: stream {number} brought other frames than one for each token, in order.")
        if plan.way != "floor" and [chunk["timing"]["committed_ns"] for _, chunk in shown] != stamps:
            raise SystemExit(f"{plan.way}: stream {number} brought other commit times than the engine's.")
        for step in range(WARMUP_STEPS, plan.tokens):
            frame = shown[step][0]
            delivery.append(frame.read_ns - stamps[step])
            intended.append(frame.read_ns - start_ns - (step + 1) * plan.step_ns)
            size += len(frame.data)
    return {
        "delivery_us": _summary_us(delivery),
        "intended_us": _summary_us(intended),
        "frame_bytes": size / (plan.steps * plan.streams),
    }


def _summary_us(values_ns: list[int]) -> dict[str, float]:
    p50, p99 = np.percentile(values_ns, (50, 99)) / 1e3
    return {"p50": float(p50), "p99": float(p99), "max": max(values_ns) / 1e3}


# ---- the run ---------------------------------------------------------------------------------------------------


def _median(rows: list[Any]) -> Any:
    """The median of every figure over the rounds."""
    if isinstance(rows[0], dict):
        return {key: _median([row[key] for row in rows]) for key in rows[0]}
    return round(statistics.median(rows), 3)


def _conclusions(levels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per number of streams: the cheapest way, the better one of two, and each way beside the floor and the target."""
    conclusions = []
    for streams in dict.fromkeys(level["streams"] for level in levels):
        found = [level for level in levels if level["streams"] == streams]
        cost = {level["way"]: level["cpu_us_per_frame"] for level in found}
        floor = cost.pop("floor")
        above = {way: round(value - floor, 3) for way, value in cost.items()}
        conclusions.append(
            {
                "streams": streams,
                "cheapest": min(cost, key=cost.__getitem__),
                "better_of_asgi_send_and_protocol": min("asgi_send", "protocol", key=cost.__getitem__),
                "protocol_to_asgi_send": round(cost["protocol"] / cost["asgi_send"], 3),
                "floor_ratio": {way: round(value / floor, 3) for way, value in cost.items()},
                "above_floor_us": above,
                "within_target": [way for way in cost if above[way] <= _TARGET_US],
                "disturbed": [level["way"] for level in found if level["drains_per_step"] < _UNDISTURBED],
            }
        )
    return conclusions


def _report(levels: list[dict[str, Any]], conclusions: list[dict[str, Any]]) -> str:
    head = (
        *("streams", "way", "CPU per frame", "above floor", "x floor"),
        *("delivery p50", "p99", "from due p99", "switches/step", "drains/step"),
    )
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for level in levels:
        [found] = [conclusion for conclusion in conclusions if conclusion["streams"] == level["streams"]]
        way = level["way"]
        cells = [
            f"{level['streams']}",
            way,
            f"{level['cpu_us_per_frame']:.2f}",
            "-" if way == "floor" else f"{found['above_floor_us'][way]:+.2f}",
            "-" if way == "floor" else f"{found['floor_ratio'][way]:.2f}",
            f"{level['delivery_us']['p50']:,.0f}",
            f"{level['delivery_us']['p99']:,.0f}",
            f"{level['intended_us']['p99']:,.0f}",
            f"{level['switches_per_step']:.2f}",
            f"{level['drains_per_step']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for found in conclusions:
        better, ratio = found["better_of_asgi_send_and_protocol"], found["protocol_to_asgi_send"]
        ratios = ", ".join(f"{way} {value:.2f}" for way, value in found["floor_ratio"].items())
        lines.append(
            f"* {found['streams']} streams: `{found['cheapest']}` is the cheapest way. Of `asgi_send` and `protocol` "
            f"it is `{better}`: a frame costs the protocol {ratio:.2f} of what it costs `asgi_send`. Multiples of the "
            f"floor: {ratios}. Within {_TARGET_US:g} us of the floor: {', '.join(found['within_target']) or 'none'}."
        )
        if found["disturbed"]:
            lines[-1] += f" NOT COMPARABLE, because several steps went out together: {', '.join(found['disturbed'])}."
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argument_parser(__doc__, "frames.{json,md}", rounds=3)
    parser.add_argument("--streams", type=integers, default="16,64,256", help="levels (default %(default)s)")
    parser.add_argument("--step-ms", type=float, default=20.0, help="cadence (default %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="tokens per stream after the warm-up (%(default)s)")
    cores = sorted(os.sched_getaffinity(0))
    parser.add_argument(
        "--cpus",
        default="any" if len(cores) == 1 else f"{cores[0]},{cores[1]}",
        help="the core of engine and client, and the server's; or `any` (default %(default)s)",
    )
    options = parser.parse_args()
    options.cpus = core_pair(parser, options.cpus, cores)
    if min(options.streams) < 1 or options.step_ms <= 0 or min(options.steps, options.rounds) < 1:
        parser.error("--streams, --step-ms, --steps and --rounds are positive numbers")
    return options


def main() -> None:
    """Measure all ways in turn at every number of streams."""
    options = _options()
    machine = describe()  # before this process gives up cores
    allow_many_files()
    if options.cpus is not None:
        os.sched_setaffinity(0, {options.cpus[0]})
    gc.disable()  # a pause of the client would count as the server's latency
    runs: dict[tuple[int, str], list[dict[str, Any]]] = {}
    step_ns = round(options.step_ms * 1e6)
    for number in range(options.rounds):
        for streams in options.streams:
            progress(f"round {number + 1}/{options.rounds}, {streams} streams")
            first = number % len(WAYS)
            for way in WAYS[first:] + WAYS[:first]:
                plan = Plan(way=way, streams=streams, steps=options.steps, step_ns=step_ns, cpus=options.cpus)
                runs.setdefault((streams, way), []).append(measure(plan))
    levels = [
        {"streams": streams, "way": way, **_median(runs[streams, way])} for streams in options.streams for way in WAYS
    ]
    conclusions = _conclusions(levels)
    result = {
        "benchmark": "frames",
        "step_ms": options.step_ms,
        "steps": options.steps,
        "warmup_steps": WARMUP_STEPS,
        "rounds": options.rounds,
        "cpus": options.cpus,
        "conclusions": conclusions,
        "levels": levels,
        "machine": machine,
    }
    preface = (
        f"Made by `{command_line()}`; {options.steps} steps of {options.step_ms:g} ms per run, median of "
        f"{options.rounds} rounds, all ways in turn.\nWhat each way and each figure is: docstring of "
        "`benchmarks/bench_frames.py`.\n\n"
    )
    finish(options, "frames", "Writing frames, microseconds", _report(levels, conclusions), result, preface=preface)


if __name__ == "__main__":
    main()
