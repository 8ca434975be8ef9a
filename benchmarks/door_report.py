"""The Markdown of bench_door.py: targets with what was measured, and its tables."""

from __future__ import annotations

from typing import Any

from door_costs import QUIET
from door_servers import RBEE, RBEE_16, STEP_MS
from saving import table

HEALTH_MS = 20.0
GROWTH_KB = 64 * 1024
DELAY_MS = 5.0
ARRIVAL = 1.0  # seconds of an attack in which the attackers connect
PHASES = ("quiet", "arrival", "attack", "after")


def report(result: dict[str, Any]) -> str:
    """Everything, from what the program prints as JSON."""
    parts = []
    if result["attacks"]:
        parts += [
            f"## Targets in the attack\n\n{_targets(result['attacks'])}",
            f"## /health and a running stream, ms\n\n{_felt(result['attacks'])}",
            f"## What the server process holds\n\n{_held(result['attacks'])}",
            f"## What became of the attackers\n\n{_attackers(result['attacks'])}",
            f"## CPU time of the server process, us\n\n{_cpu(result['cpu'])}",
        ]
    if result["costs"]:
        parts.append(f"## Single requests beside 8 streams\n\n{_costs(result['costs'])}")
    if result["bursts"]:
        parts.append(f"## /health behind a burst of aborted requests, ms\n\n{_bursts(result['bursts'])}")
    return "\n\n".join(parts)


def _name(attack: dict[str, Any]) -> str:
    return f"{attack['server']}, {attack['streams']}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


def _kb(value: int) -> str:
    return f"{value / 1024:,.1f}"


def _targets(attacks: list[dict[str, Any]]) -> str:
    """Of rbee's two set-ups; the peers' figures beside."""
    rows = []
    for attack in attacks:
        health, itl = attack["whole_attack"]["health"], attack["whole_attack"]["itl"]
        quiet, arrived = attack["quiet"]["itl"], attack["attack"]["health"]
        most = (quiet["p99"] or 0.0) + STEP_MS
        growth, left = attack["growth_kb"], attack["left_kb"]
        fds = attack["fds"]
        met = [
            health["p99"] is not None and health["p99"] <= HEALTH_MS and not health["failures"],
            itl["p99"] is not None and itl["p99"] <= most,
            growth <= GROWTH_KB,
            fds["after"] <= fds["before"] and left <= GROWTH_KB // 8,
        ]
        shown = [
            f"{_number(health['p99'])} ms ({_number(arrived['p99'])} after the arrival), {health['failures']} failed",
            f"{_number(itl['p99'])} ms (<= {_number(most)})",
            f"{_kb(growth)} MiB",
            f"{fds['before']} -> {fds['after']} fds, {_kb(left)} MiB left",
        ]
        missed = "missed: " if attack["server"] in {RBEE, RBEE_16} else ""
        rows.append([_name(attack), *(text if ok else f"{missed}{text}" for text, ok in zip(shown, met, strict=True))])
    head = [
        "server, streams", f"/health p99 <= {HEALTH_MS:g} ms, none fails", "ITL p99 <= quiet + one step",
        f"memory grows <= {GROWTH_KB // 1024} MiB", "afterwards: fds, memory (<= 8 MiB) are back",
    ]  # fmt: skip
    return table(head, rows)


def _felt(attacks: list[dict[str, Any]]) -> str:
    rows = []
    for attack in attacks:
        for phase in PHASES:
            felt = attack[phase]
            health, itl = felt["health"], felt["itl"]
            rows.append([
                _name(attack),
                phase,
                str(health["count"]),
                str(health["failures"]),
                *(_number(health[key]) for key in ("p50", "p99", "max")),
                *(_number(itl[key]) for key in ("p50", "p99", "max")),
                f"{_number(felt['asked_late']['p99'])} / {_number(felt['asked_late']['max'])}",
                f"{felt['frames_per_s']:,.0f}",
            ])  # fmt: skip
    head = [
        "server, streams", "phase", "answers", "failed", "/health p50", "p99", "max", "ITL p50", "p99", "max",
        "asked late p99 / max", "frames/s of all streams",
    ]  # fmt: skip
    return table(head, rows)


def _held(attacks: list[dict[str, Any]]) -> str:
    rows = [
        [
            _name(attack),
            *(_kb(attack["memory_kb"][key]) for key in ("before", "peak", "after")),
            *(str(attack["fds"][key]) for key in ("before", "attack", "after")),
            str(attack["lost"]),
        ]
        for attack in attacks
    ]
    head = ["server, streams", "MiB before", "at most", "after", "fds before", "in the attack", "after", "streams lost"]
    return table(head, rows)


def _attackers(attacks: list[dict[str, Any]]) -> str:
    rows = [[_name(attack), ", ".join(f"{key} {n:,}" for key, n in attack["attackers"].items())] for attack in attacks]
    return table(["server, streams", "per attack, the last round"], rows)


def _cpu(costs: dict[str, dict[str, float]]) -> str:
    rows = [[name, *(_number(cost[key]) for key in ("get", "fresh", "post", "frame"))] for name, cost in costs.items()]
    return table(["server", "GET /health", "on a new connection", "POST of 4 KB, one token", "streamed frame"], rows)


def _costs(costs: list[dict[str, Any]]) -> str:
    """`*` marks what is delayed beyond the bound and beyond what the machine does without a request."""
    noise = {row["model"]: row["excess_max_ms"] for row in costs if row["case"] == QUIET}
    rows = []
    for row in costs:
        beyond = row["excess_max_ms"] > DELAY_MS + max(0.0, noise[row["model"]])
        rows.append([
            row["model"],
            row["case"],
            f"{row['status'] or ''} {row['code']}".strip(),
            _number(row["answer_ms"]),
            _number(row["cpu_ms"]),
            _kb(row["peak_kb"]),
            _kb(row["left_kb"]),
            _number(row["excess_p99_ms"]),
            _number(row["excess_worst_median_ms"]),
            _number(row["excess_max_ms"]) + (" *" if beyond else ""),
            _number(row["wakeup_max_ms"]),
            _number(row["loop_lag_max_ms"]),
            f"{_number(row['step_ms'])} / {_number(row['step_max_ms'])}",
        ])  # fmt: skip
    head = [
        "model", "request", "answer", "after, ms", "CPU, ms", "peak, MiB", "left, MiB", "gap - step: p99, ms",
        "worst, median", "worst", "commit -> drain, worst", "loop lag, worst", "step: gaps / the engine's longest",
    ]  # fmt: skip
    return table(head, rows)


def _bursts(bursts: list[dict[str, Any]]) -> str:
    rows = [
        [
            burst["model"],
            phase,
            str(burst[phase]["health"]["count"]),
            str(burst[phase]["health"]["failures"]),
            *(_number(burst[phase][what][key]) for what in ("health", "itl") for key in ("p50", "p99", "max")),
        ]
        for burst in bursts
        for phase in ("quiet", "burst")
    ]
    head = ["model", "phase", "answers", "failed", "/health p50", "p99", "max", "ITL p50", "p99", "max"]
    return table(head, rows)
