"""The way from the engine to the server alone: rbee's transport beside what could be used in its place.

    python benchmarks/bench_transport.py --save        # about 12 minutes; needs the `bench` extra of pyproject.toml
    python benchmarks/bench_transport.py --quick       # half a minute, to see that it works

A producer process publishes one token per stream on a fixed cadence. A consumer process sleeps in a uvloop event loop
until it has the tokens in Python lists, one per stream. The contenders are in `transport_peers.py`, what is measured in
`transport_run.py`. There is no model and no HTTP; `bench_delivery.py` has those.

Three parts in one run, contenders in turn within each round, medians over the rounds:

* at a cadence: latency from the stamp before publishing, and from the time the step was due, so that lateness is not
  forgiven; CPU per token of both processes; how often they gave up their core. The floor is a bare eventfd wake at the
  same cadence, one beside every number of streams; `p99 above floor` subtracts the median of its p99.
* saturated: publishing as fast as the contender allows, for `--saturated-seconds`.
* system calls per step, counted by strace in a separate pass, at a slower cadence that leaves time for tracing; null
  without strace.

A token lost, repeated, wrong or out of order ends the program. Tokens of one step arrive together, so a level with
fewer than 1,000 steps has its worst step for p99.9.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import signal
import statistics
import sys
from typing import TYPE_CHECKING, Any

from program import allow_many_files, argument_parser, command_line, core_pair, finish, integers, numbers, progress
from saving import RESULTS
from transport_peers import CONTENDERS, DEPTH, FLOOR
from transport_report import TARGET_STREAMS, plot, report, targets
from transport_run import Plan, count_syscalls, measure, saturate

if TYPE_CHECKING:
    import argparse

_WARMUP_STEPS = 20
_TARGET_FACTOR = 2  # the level at which the targets are judged gets that many times the steps
_TRACED_WARMUP, _TRACED_STEPS = 2, 8


def _options() -> argparse.Namespace:
    parser = argument_parser(__doc__, "transport.{json,md,png}", rounds=3)
    parser.add_argument("--streams", type=integers, default="1,16,64,256,1024", help="levels (default %(default)s)")
    parser.add_argument("--step-ms", type=numbers, default="5,10,20", help="cadences (default %(default)s)")
    parser.add_argument(
        "--steps",
        type=int,
        default=120,
        help=f"per level; twice that at {TARGET_STREAMS} streams (default %(default)s)",
    )
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
    options = parser.parse_args()
    if options.quick:
        options.streams, options.step_ms, options.steps, options.rounds = [1, 256], [5.0], 100, 1
        options.saturated_seconds = min(options.saturated_seconds, 0.3)
    options.contenders = options.contenders.split(",")
    options.cpus = core_pair(parser, options.cpus, cores)
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
            progress(f"{streams} streams, a step every {step_ms:g} ms")
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
        progress(f"{streams} streams under strace")
        for name in options.contenders:
            step_ns = round((20 + streams / 4) * 1e6)  # tracing costs a contender's call per stream that much
            plan = Plan(streams, _TRACED_WARMUP, _TRACED_STEPS, step_ns, cpus=options.cpus)
            figures = count_syscalls(CONTENDERS[name], plan)
            if figures is None:
                progress("strace may not attach to a process here; system calls are not counted.")
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
        progress(f"round {number + 1}/{options.rounds}")
        _at_cadences(options, gathered)
        if options.saturated_seconds:
            progress(f"{saturated_streams} streams, saturated")
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
        "machine": {"contenders": _contender_versions(options.contenders)},
    }


def main() -> None:
    """Measure, print, and save if asked to."""
    options = _options()
    allow_many_files()
    # A SIGTERM ends the run as Ctrl-C does, through the code that cleans up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Ended by SIGTERM."))
    result = run(options)
    preface = (
        f"Made by `{command_line()}`; {options.steps} steps per level (twice that at {TARGET_STREAMS} streams), "
        f"medians of {options.rounds} rounds, all contenders in turn in one run. What is measured: docstrings of "
        "`benchmarks/bench_transport.py` and `transport_run.py`; who takes part, and how it is used: "
        "`transport_peers.py`.\n\n![p50, p99 and CPU over streams](transport.png)\n\n"
    )
    finish(options, "transport", "Transport, microseconds", report(result), result, preface=preface)
    if options.save:
        plot(result, RESULTS / "transport.png")


if __name__ == "__main__":
    main()
