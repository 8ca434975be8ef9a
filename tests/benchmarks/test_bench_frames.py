"""benchmarks/bench_frames.py with tiny numbers, and what it says of streams that are not as they must be."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rbee.messages import FinishReason
from rbee.models import synthetic
from rbee.server.http import sse
from rbee.server.streams.pieces import Piece
from rbee.server.text.tokenizer import TextCodec

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WAYS = ["streaming_response", "asgi_send", "protocol", "native", "floor"]
PATIENCE = 120.0


def command(options: str) -> list[str]:
    """The program, with warnings as errors."""
    return [sys.executable, "-W", "error", str(BENCHMARKS / "bench_frames.py"), *options.split()]


def test_every_way_delivers_everything_and_is_reported():
    """More streams than a word of the bitmap has bits: the last line is JSON, with all frames and a cost per way."""
    arguments = command("--streams 70 --step-ms 5 --steps 10 --rounds 1")
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert [(level["streams"], level["way"]) for level in result["levels"]] == [(70, way) for way in WAYS]
    for level in result["levels"]:
        assert level["frames"] == 70 * 10
        assert level["cpu_us_per_frame"] > 0
        assert 0 < level["delivery_us"]["p50"] <= level["delivery_us"]["p99"] <= level["delivery_us"]["max"]
        assert level["intended_us"]["p50"] >= level["delivery_us"]["p50"]
        assert level["drains_per_step"] > 0 <= level["switches_per_step"]
    assert len({level["frame_bytes"] for level in result["levels"]}) == 1
    [conclusion] = result["conclusions"]
    late = [level["way"] for level in result["levels"] if level["drains_per_step"] < 0.95]
    assert conclusion["disturbed"] == late
    assert ("NOT COMPARABLE" in run.stderr) == bool(late)
    cost = {level["way"]: level["cpu_us_per_frame"] for level in result["levels"]}
    floor = cost.pop("floor")
    assert cost[conclusion["cheapest"]] == min(cost.values())
    assert conclusion["floor_ratio"] == pytest.approx({way: cost[way] / floor for way in cost}, abs=1e-3)
    better = conclusion["better_of_asgi_send_and_protocol"]
    assert cost[better] == min(cost["asgi_send"], cost["protocol"])


@pytest.fixture
def bench(monkeypatch):
    """The program's modules."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench_frames
    import frames_processes

    return bench_frames, frames_processes


def response(frames_processes, plan, stamps):
    """What the client of stream 0 reads, a piece per frame: the head, then the tokens, then the end."""
    dialect = frames_processes.make_dialect(0, TextCodec(synthetic.tokenizer()))
    tokens = synthetic.expected_tokens([0], plan.tokens)
    pieces = [
        Piece(chr(token), number, at, []) for number, (token, at) in enumerate(zip(tokens, stamps, strict=True), 1)
    ]
    bodies = [dialect.piece(0, piece, number) for number, piece in enumerate(pieces)]
    bodies.append(dialect.end(0, Piece("", plan.tokens, None, []), plan.tokens, FinishReason.LENGTH) + sse.DONE)
    chunks = [b"%x\r\n%b\r\n" % (len(body), body) for body in bodies]
    return [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n"]


def test_latencies_are_those_after_the_warm_up(bench):
    """From the commit, and from when the step was due; a slow warm-up does not count."""
    bench_frames, frames_processes = bench
    plan = frames_processes.Plan(way="native", streams=1, steps=2, step_ns=1000, cpus=None)
    warm = frames_processes.WARMUP_STEPS
    stamps = [10**9 + 1000 * (step + 1) + 100 for step in range(plan.tokens)]  # each 100 ns late
    read_ns = [0, *(at + (10**6 if step < warm else 5000) for step, at in enumerate(stamps)), 2 * 10**9, 2 * 10**9]
    reads = list(zip(read_ns, response(frames_processes, plan, stamps), strict=True))
    figures = bench_frames.latencies(plan, [reads], 10**9, stamps)
    assert figures["delivery_us"] == {"p50": 5.0, "p99": 5.0, "max": 5.0}
    assert figures["intended_us"] == pytest.approx({"p50": 5.1, "p99": 5.1, "max": 5.1})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("lost", "other frames"),
        ("repeated", "other frames"),
        ("swapped", "other frames"),
        ("late stamp", "commit times"),
        ("no end", r"without \[DONE\]"),
    ],
)
def test_faulty_streams_end_the_program(bench, fault, message):
    """A token that is missing, too much or in the wrong place, a wrong commit time, a stream that breaks off."""
    bench_frames, frames_processes = bench
    plan = frames_processes.Plan(way="native", streams=1, steps=2, step_ns=1000, cpus=None)
    stamps = [10**9 + step for step in range(plan.tokens)]
    pieces = response(frames_processes, plan, stamps)
    match fault:
        case "lost":
            del pieces[5]
        case "repeated":
            pieces.insert(5, pieces[5])
        case "swapped":
            pieces[5], pieces[6] = pieces[6], pieces[5]
        case "late stamp":
            stamps[4] += 1
        case "no end":
            del pieces[-2:]
    with pytest.raises(SystemExit, match=message):
        bench_frames.latencies(plan, [[(2 * 10**9, piece) for piece in pieces]], 10**9, stamps)


@pytest.mark.parametrize("which", ["engine", "server", "client", "client at once"])
def test_no_process_outlives_another(which):
    """If the engine or the server dies the program fails; if the program is interrupted or killed the others end."""
    program = subprocess.Popen(command("--streams 1 --steps 900 --step-ms 1000"), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    parent = psutil.Process(program.pid)
    try:
        while len(found := doorbell_holders(parent)) < 2 or not connected(parent):
            assert time.monotonic() < deadline, "the run does not start"
            gone, _ = psutil.wait_procs([parent], timeout=0.05)
            assert not gone, program.communicate()
        server = next(child for child in found if child.net_connections())
        if which == "client":
            program.send_signal(signal.SIGINT)
        elif which == "client at once":
            program.kill()
        else:
            next(child for child in found if (child == server) == (which == "server")).kill()
        _, errors = program.communicate(timeout=PATIENCE)
        psutil.wait_procs(found, timeout=PATIENCE)
    finally:
        program.kill()
        program.communicate()
    assert program.returncode != 0
    assert not [child for child in found if child.is_running()]
    said = {"client": "KeyboardInterrupt", "client at once": ""}
    assert said.get(which, " has ended") in errors


def doorbell_holders(parent: psutil.Process) -> list[psutil.Process]:
    """The children that have got the eventfd: the engine and the server, not the resource tracker."""
    found = []
    for child in parent.children():
        with contextlib.suppress(OSError):  # a descriptor that is being closed
            links = [entry.readlink() for entry in Path(f"/proc/{child.pid}/fd").iterdir()]
            if any("eventfd" in link.name for link in links):
                found.append(child)
    return found


def connected(parent: psutil.Process) -> bool:
    """Whether the client has opened its connections."""
    return any(connection.status == psutil.CONN_ESTABLISHED for connection in parent.net_connections())
