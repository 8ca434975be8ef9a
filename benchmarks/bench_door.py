"""What a server and its running streams feel of clients that attack it, and what single requests can cost it.

    make bench-door ARGS=--save

The attack, on rbee with its default --max-body-mib and with 16, and in turn on a plain uvicorn and starlette app with
each of uvicorn's two parsers (`door_peer.py`), all with uvloop and `ulimit -n 8192`:

* quiet: `--streams` streams at 20 ms steps, which a process of its own reads. One more is marked.
* arrival and attack: beside them --half-sent connections with a part of a head (a quarter of them without a byte),
  --bodies unfinished bodies of 15 MiB less one byte, and a connection that sends trailers without an end. The attackers
  send what the server takes; refused, they go on until the connection breaks; only the trailers come again then. The
  arrival is the first second, in which all connect.
* after: the attackers have reset their connections.

/health is asked on a fresh connection every 10 ms whatever became of the last one (open loop), and counts from when it
was due; "failed" is another answer than 200, or none within 5 s. ITL: gaps between the frames of the marked stream.
Both are of all rounds together, as they are the worst figures; `asked late` is how late the asking process itself was.
Memory is RssAnon and swap of the server process, looked at every 50 ms: before is with all streams open. Descriptors
are those without a /health that is just being answered. A peer that cannot keep the streams' cadence has a longer ITL
in the quiet phase already: `frames/s` shows it. So one round has the attack with --few-streams too.

CPU: of the server process alone, less what it uses without requests; the median of the rounds. Requests come one after
the other: GET /health and POST of 4 KB for one token on one connection, GET /health on one for each, at 1 ms steps.
rbee's has its engine's part to do, which the peers lack. Frames: of 64 streams of 200 frames at 20 ms.

Single requests, on rbee with its defaults, beside 8 streams of each of --models (synthetic: 10 ms steps); each request
--repeats times, with pauses:

* answer: status and code. after: from the connect until the last byte of the answer, the median. CPU: of the server
  process, less what the streams alone cost, the median.
* peak: the most memory beyond that before the request. left: after all repetitions, beyond that before the first.
* gap - step: gaps between two frames of any of the streams while a request is answered, and 50 ms longer, less the
  median gap of the pauses. p99 of all gaps; of the largest gap of each repetition the median and the worst. `*`: more
  than 5 ms beyond the worst without a request.
* commit -> drain, loop lag, engine's longest step: the server's own histograms. The first is how late the event loop
  came for tokens. A step that is longer because it computes the request's prompt is no delay by the
  door. Loop lag is looked at only each 100 ms.

Burst: /health while 600 POSTs of 6 KB are aborted in prefill, 100 at once.
"""

from __future__ import annotations

import resource
import statistics
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import door_costs
import door_servers
from door_attack import attack
from door_clients import Client, Felt, read_streams, watch
from door_report import ARRIVAL, PHASES, report
from door_servers import CONTENDERS, RBEE_16, Peak, descriptors
from faulty_server import memory_kb
from program import argument_parser, command_line, finish, progress
from sse_client import http_request

from rbee.config import DEFAULT_MODEL, SYNTHETIC

if TYPE_CHECKING:
    import argparse

_OPEN_FILES = 8192
_STREAM_TOKENS = 8000
_HEALTH_EVERY_NS = 10_000_000
_PEAK_PERIOD = 0.05  # seconds
_SETTLE = 1.0  # seconds
_BACK = 5.0  # seconds within which memory and descriptors must be back
_CPU_STREAMS, _CPU_FRAMES = 64, 200


def attack_one(name: str, streams: int, options: argparse.Namespace) -> dict[str, Any]:
    """A server of its own through all phases: what was felt in each, what it held, and its CPU costs."""
    server = door_servers.start(name)
    try:
        parts = urlsplit(server.url)
        address = (str(parts.hostname), int(parts.port or 80))
        payload = {"prompt": "a stream", "max_tokens": _STREAM_TOKENS, "stream": True}
        request = http_request(server.url, "/v1/completions", payload)[2]
        reader = Client(read_streams, address, request, streams)
        watcher = Client(watch, address, request, 1, _HEALTH_EVERY_NS)
        time.sleep(_SETTLE)

        began: dict[str, float] = {}

        def phase(name: str, seconds: float) -> None:
            began[name] = time.monotonic()
            reader.tell(name)
            watcher.tell(name)
            time.sleep(seconds)

        phase("quiet", options.quiet)
        memory, fds = {"before": memory_kb(server.pid)}, {"before": descriptors(server.pid)}
        with Peak(server.pid, _PEAK_PERIOD) as most:
            attackers = Client(attack, address, options.half_sent, options.bodies, options.floods)
            phase("arrival", min(ARRIVAL, options.seconds / 2))
            phase("attack", options.seconds - min(ARRIVAL, options.seconds / 2))
            fds["attack"] = descriptors(server.pid)
        memory["peak"] = most.kb
        counts = attackers.end()
        phase("after", options.after)
        deadline = time.monotonic() + _BACK
        while (left := descriptors(server.pid)) > fds["before"] and time.monotonic() < deadline:
            time.sleep(0.1)
        fds["after"], memory["after"] = left, memory_kb(server.pid)
        ends = dict(zip(began, [*list(began.values())[1:], time.monotonic()], strict=True))
        felt, read = watcher.end(), reader.end()
    finally:
        server.stop()
    return {
        "felt": felt,
        "frames": {name: read["frames"][name] / (ends[name] - began[name]) for name in PHASES},
        "lost": read["ended"] + sum(one.ended for one in felt.values()),
        "memory_kb": memory,
        "fds": fds,
        "attackers": counts,
    }


def _together(runs: list[dict[str, Any]], phases: tuple[str, ...]) -> dict[str, Any]:
    """What was felt in these phases of all rounds."""
    felt: list[Felt] = [run["felt"][phase] for run in runs for phase in phases]
    return door_costs.summary(
        Felt(
            [[gap for one in felt for gap in one.gaps[0]]],
            [value for one in felt for value in one.health],
            sum(one.failures for one in felt),
            [value for one in felt for value in one.late],
        )
    )


def _row(name: str, streams: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """All rounds of one server: samples together, the worst of what is held."""
    worst = max(runs, key=lambda run: run["memory_kb"]["peak"] - run["memory_kb"]["before"])
    return {
        "server": name,
        "streams": streams,
        **{
            phase: _together(runs, (phase,))
            | {"frames_per_s": round(statistics.mean(run["frames"][phase] for run in runs))}
            for phase in PHASES
        },
        "whole_attack": _together(runs, ("arrival", "attack")),
        "memory_kb": worst["memory_kb"],
        "growth_kb": worst["memory_kb"]["peak"] - worst["memory_kb"]["before"],
        "left_kb": max(run["memory_kb"]["after"] - run["memory_kb"]["before"] for run in runs),
        "fds": max((run["fds"] for run in runs), key=lambda fds: fds["after"] - fds["before"]),
        "lost": sum(run["lost"] for run in runs),
        "attackers": runs[-1]["attackers"],
        "rounds": [{key: run[key] for key in ("memory_kb", "fds", "attackers", "lost")} for run in runs],
    }


def measure_cpu(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The CPU costs of each server, measured in turn in each round."""
    servers = [name for name in options.servers if name != RBEE_16]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    for number in range(options.rounds):
        for name in servers if number % 2 == 0 else servers[::-1]:
            progress(f"CPU, round {number + 1}/{options.rounds}: {name}")
            runs[name].append(door_servers.cpu_us(name, options.gets, options.posts, _CPU_STREAMS, _CPU_FRAMES))
    return {
        name: {key: round(statistics.median(run[key] for run in of_one), 2) for key in of_one[0]}
        for name, of_one in runs.items()
    }


def measure_attacks(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every server in turn in each round: a row for each.

    The first round has another part, with as few streams as the peers can carry.
    """
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {(name, options.streams): [] for name in options.servers}
    few = [(name, options.few_streams) for name in options.servers if name != RBEE_16 and options.few_streams]
    runs |= {turn: [] for turn in few}
    for number in range(options.rounds):
        turns = list(runs) if number == 0 else [turn for turn in runs if turn not in few][::-1]
        for turn in turns:
            name, streams = turn
            progress(f"round {number + 1}/{options.rounds}: {name}, {streams} streams")
            runs[turn].append(attack_one(name, streams, options))
    return [_row(*turn, of_one) for turn, of_one in runs.items() if of_one]


def main() -> None:
    """The attacks and the CPU costs round by round, then single requests and the burst, model by model."""
    parser = argument_parser(__doc__, "door.{json,md}", rounds=2)
    parser.add_argument("--parts", default="attack,cpu,costs,burst", help="what is measured (default %(default)s)")
    parser.add_argument("--models", default=f"{SYNTHETIC},default", help="of single requests (default %(default)s)")
    parser.add_argument(
        "--servers", type=lambda names: names.split(";"), default=list(CONTENDERS), help="in ;-separated names (all)"
    )
    parser.add_argument("--streams", type=int, default=512, help="in the attack (default %(default)s)")
    parser.add_argument("--few-streams", type=int, default=64, help="in one more attack; 0: none (default %(default)s)")
    parser.add_argument("--half-sent", type=int, default=2000, help="connections (default %(default)s)")
    parser.add_argument("--bodies", type=int, default=60, help="unfinished ones (default %(default)s)")
    parser.add_argument("--floods", type=int, default=1, help="connections with trailers (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of an attack (default %(default)s)")
    parser.add_argument("--quiet", type=float, default=3.0, help="seconds before it (default %(default)s)")
    parser.add_argument("--after", type=float, default=2.0, help="seconds behind it (default %(default)s)")
    parser.add_argument("--gets", type=int, default=2000, help="/health for CPU in each round (default %(default)s)")
    parser.add_argument("--posts", type=int, default=500, help="POSTs for CPU in each round (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of each single request (default %(default)s)")
    parser.add_argument("--case", default="", help="only single requests whose name holds this")
    options = parser.parse_args()
    parts = options.parts.split(",")
    models = [DEFAULT_MODEL if name == "default" else name for name in options.models.split(",")]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_OPEN_FILES, hard), hard))
    attacks = measure_attacks(options) if "attack" in parts else []
    cpu = measure_cpu(options) if "cpu" in parts else {}
    costs = []
    for name in models if "costs" in parts else []:
        costs += door_costs.measure(name, options.repeats, options.case)
    bursts = [door_costs.measure_burst(name, 1, _HEALTH_EVERY_NS) for name in models if "burst" in parts]
    result = {"benchmark": "door", "attacks": attacks, "cpu": cpu, "costs": costs, "bursts": bursts}
    finish(
        options, "door", "What comes in at the door", report(result), result, preface=f"Made by `{command_line()}`.\n\n"
    )


if __name__ == "__main__":
    main()
