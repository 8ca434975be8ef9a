"""The way from the engine to the server alone: rbee's transport beside what could be used in its place.

    python benchmarks/bench_transport.py --save        # about 12 minutes; needs the `bench` extra of pyproject.toml
    python benchmarks/bench_transport.py --quick       # half a minute, to see that it works

A producer process publishes one token per stream on a fixed cadence, a consumer process sleeps in a uvloop event loop
until it holds the tokens in Python lists, one per stream. Who takes part and how: `transport_peers.py`. What exactly is
measured: `transport_run.py`. No model, no HTTP; `bench_delivery.py` has those.

Three parts, all in one run, contenders in turn within each round, figures are medians over the rounds:

* at a cadence: latency from the stamp before publishing (and from the time the step was due, so that lateness is not
  forgiven), CPU per token of both processes, how often they gave up their core. The floor is a bare eventfd wake at the
  same cadence in the same run, one beside every number of streams; `p99 above floor` subtracts the median of its p99.
* saturated: publishing as fast as the contender lets the producer, for `--saturated-seconds`.
* system calls per step, counted by strace in a pass of its own, at a slower cadence that leaves time for tracing;
  null without strace.

A token lost, repeated, wrong or out of order ends the program. Tokens of one step arrive together, so a level with
fewer than 1,000 steps has its worst step for p99.9. Output: Markdown on stderr, one JSON line on stdout; --save also
writes benchmarks/results/transport.{json,md,png}.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import resource
import shutil
import signal
import statistics
import sys
from pathlib import Path
from typing import Any

from machine import describe
from transport_peers import CONTENDERS, DEPTH, FLOOR
from transport_report import TARGET_STREAMS, plot, report, targets
from transport_run import Plan, count_syscalls, measure, saturate

_WARMUP_STEPS = 20
_TARGET_FACTOR = 2  # the level at which the targets are judged gets that many times the steps
_TRACED_WARMUP, _TRACED_STEPS = 2, 8


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="1,16,64,256,1024", help="comma-separated levels (default %(default)s)")
    parser.add_argument("--step-ms", default="5,10,20", help="comma-separated cadences (default %(default)s)")
    parser.add_argument(
        "--steps",
        type=int,
        default=120,
        help=f"per level; twice that at {TARGET_STREAMS} streams (default %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all levels (default %(default)s)")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="comma-separated (default %(default)s)")
    parser.add_argument("--saturated-seconds", type=float, default=1.0, help="0 leaves it out (default %(default)s)")
    cores = sorted(os.sched_getaffinity(0))
    parser.add_argument(
        "--cpus",
        default="any" if len(cores) == 1 else f"{cores[0]},{cores[1]}",
        help="the producer's and the consumer's core, or `any` (default %(default)s)",
    )
    parser.add_argument("--no-syscalls", action="store_true", help="leave out the pass under strace")
    parser.add_argument("--quick", action="store_true", help="1 and 256 streams at 5 ms, 100 steps, one short round")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/transport.{json,md,png}")
    options = parser.parse_args()
    if options.quick:
        options.streams, options.step_ms, options.steps, options.rounds = "1,256", "5", 100, 1
        options.saturated_seconds = min(options.saturated_seconds, 0.3)
    options.streams = [int(level) for level in options.streams.split(",")]
    options.step_ms = [float(cadence) for cadence in options.step_ms.split(",")]
    options.contenders = options.contenders.split(",")
    options.cpus = None if options.cpus == "any" else tuple(int(cpu) for cpu in options.cpus.split(","))
    if options.cpus is not None and not (len(options.cpus) == 2 and set(options.cpus) <= set(cores)):
        parser.error(f"--cpus: `any`, or two of {', '.join(map(str, cores))}")
    if min(options.streams) < 1 or min(options.step_ms) <= 0 or min(options.steps, options.rounds) < 1:
        parser.error("--streams, --step-ms, --steps and --rounds are positive numbers")
    if unknown := [name for name in options.contenders if name not in CONTENDERS]:
        parser.error(f"--contenders: {unknown[0]!r} is none of {', '.join(CONTENDERS)}")
    needed = {CONTENDERS[name].package for name in options.contenders} | ({"matplotlib"} if options.save else set())
    if missing := sorted(name for name in needed if name and importlib.util.find_spec(name) is None):
        parser.error(f"{', '.join(missing)} not installed: pip install -c .ci/constraints.txt -e '.[bench]'")
    return options


def _at_cadences(options: argparse.Namespace, gathered: dict[tuple[Any, ...], list[dict[str, Any]]]) -> None:
    """One round over all cadences and levels."""
    for step_ms in options.step_ms:
        for streams in options.streams:
            names = [*_rotated(options.contenders, gathered), "floor"]
            print(f"{streams} streams, a step every {step_ms:g} ms", file=sys.stderr)
            for name in names:
                floor = name == "floor"
                steps = options.steps * (_TARGET_FACTOR if streams == TARGET_STREAMS else 1)
                step_ns = round(step_ms * 1e6)
                plan = Plan(1 if floor else streams, _WARMUP_STEPS, steps, step_ns, cpus=options.cpus)
                key = ("cadence", name, 0 if floor else streams, step_ms)
                gathered.setdefault(key, []).append(measure(FLOOR if floor else CONTENDERS[name], plan))


def _rotated(names: list[str], gathered: dict[tuple[Any, ...], list[dict[str, Any]]]) -> list[str]:
    """The contenders, each time another one first."""
    shift = sum(len(rows) for rows in gathered.values()) % len(names)
    return names[shift:] + names[:shift]


def _median(rows: list[Any]) -> Any:
    """The median of every figure over the rounds."""
    if isinstance(rows[0], dict):
        return {key: _median([row[key] for row in rows]) for key in rows[0]}
    return None if None in rows else round(statistics.median(rows), 4)


def _syscalls(options: argparse.Namespace) -> list[dict[str, Any]] | None:
    """System calls per step of every contender at every level; None if they cannot be counted."""
    if options.no_syscalls or shutil.which("strace") is None:
        return None
    counted = []
    for streams in options.streams:
        print(f"{streams} streams under strace", file=sys.stderr)
        for name in options.contenders:
            step_ns = round((20 + streams / 4) * 1e6)  # tracing costs a contender's call per stream that much
            plan = Plan(streams, _TRACED_WARMUP, _TRACED_STEPS, step_ns, cpus=options.cpus)
            figures = count_syscalls(CONTENDERS[name], plan)
            if figures is None:
                print("strace may not attach to a process here; system calls are not counted.", file=sys.stderr)
                return None
            counted.append({"contender": name, "streams": streams, **figures})
    return counted


def _contender_versions(names: list[str]) -> dict[str, str]:
    """The versions of the packages that contenders come from, by distribution."""
    distributions = importlib.metadata.packages_distributions()
    packages = [package for name in names if (package := CONTENDERS[name].package)]
    return {found: importlib.metadata.version(found) for package in packages for found in distributions[package]}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of all parts; the result as it is printed."""
    saturated_streams = TARGET_STREAMS if TARGET_STREAMS in options.streams else max(options.streams)
    gathered: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for number in range(options.rounds):
        print(f"round {number + 1}/{options.rounds}", file=sys.stderr)
        _at_cadences(options, gathered)
        if options.saturated_seconds:
            print(f"{saturated_streams} streams, saturated", file=sys.stderr)
            plan = Plan(saturated_streams, _WARMUP_STEPS, seconds=options.saturated_seconds, cpus=options.cpus)
            for name in _rotated(options.contenders, gathered):
                gathered.setdefault(("saturated", name), []).append(saturate(CONTENDERS[name], plan))
    floors = [{"step_ms": step_ms, **_median(gathered["cadence", "floor", 0, step_ms])} for step_ms in options.step_ms]
    levels = []
    for floor in floors:
        for streams in options.streams:
            for name in options.contenders:
                figures = _median(gathered["cadence", name, streams, floor["step_ms"]])
                above = round(figures["delivery_us"]["p99"] - floor["delivery_us"]["p99"], 1)
                place = {"contender": name, "streams": streams, "step_ms": floor["step_ms"]}
                own = round(figures["cpu_us_per_token"] - floor["cpu_us_per_token"] / streams, 4)
                levels.append({**place, **figures, "p99_above_floor_us": above, "cpu_above_floor_us_per_token": own})
    saturated = [
        {"contender": name, "streams": saturated_streams, **_median(gathered["saturated", name])}
        for name in options.contenders
        if options.saturated_seconds
    ]
    return {
        "benchmark": "transport",
        "steps": options.steps,
        "warmup_steps": _WARMUP_STEPS,
        "rounds": options.rounds,
        "depth_steps": DEPTH,
        "cpus": options.cpus,
        "targets": targets(levels, floors),
        "floors": floors,
        "levels": levels,
        "saturated": saturated,
        "syscalls": _syscalls(options),
        "machine": {**describe(), "contenders": _contender_versions(options.contenders)},
    }


def _save(result: dict[str, Any], tables: str) -> None:
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "transport.json").write_text(json.dumps(result, indent=1) + "\n")
    facts = "\n".join(f"* {key}: {value}" for key, value in result["machine"].items())
    text = (
        f"# Transport, microseconds\n\nMade by `python {' '.join(sys.argv)}`; {result['steps']} steps per level (twice "
        f"that at {TARGET_STREAMS} streams), medians of {result['rounds']} rounds, all contenders in turn in one run. "
        "What is measured: docstrings of `benchmarks/bench_transport.py` and `transport_run.py`; who takes part, and "
        "how it is used: `transport_peers.py`.\n\n"
        f"![p50, p99 and CPU over streams](transport.png)\n\n{tables}\n\n## Machine\n\n{facts}\n"
    )
    (folder / "transport.md").write_text(text)
    plot(result, folder / "transport.png")


def main() -> None:
    """Measure, print, and save if asked to."""
    options = _options()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    # A SIGTERM ends the run as Ctrl-C does, through the code that cleans up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Ended by SIGTERM."))
    result = run(options)
    tables = report(result)
    print(tables, file=sys.stderr)
    if options.save:
        _save(result, tables)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
