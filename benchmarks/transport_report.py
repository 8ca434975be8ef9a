"""Tables, the verdict on the targets, and the plot of `bench_transport.py`.

Owns presentation only; every figure comes from the result, which is what the JSON holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transport_run import PERCENTILES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TARGET_STREAMS = 256
_TARGET_CPU = 1 / 5
_TARGET_P99 = 1 / 3


def targets(levels: list[dict[str, Any]], floors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How rbee does beside ZeroMQ + msgspec at 256 streams, for every cadence at which both were measured.

    `ratio` is rbee's figure / ZeroMQ's: 0 if rbee's is not above the floor's, None if ZeroMQ's is not. `allowed` is the
    target; None for the CPU above the floor, which only shows how much of the CPU is the transports' own, and not the
    sleep and the wake of every step. `floor_ratio`, for the CPU, is what a transport that costs nothing would reach.
    """
    verdicts = []
    for floor in floors:
        step_ms = floor["step_ms"]
        found = {
            level["contender"]: level
            for level in levels
            if (level["streams"], level["step_ms"]) == (TARGET_STREAMS, step_ms)
        }
        if not {"rbee", "zmq"} <= found.keys():
            continue
        for what, key, allowed in (
            ("CPU per token", "cpu_us_per_token", _TARGET_CPU),
            ("CPU per token above the floor", "cpu_above_floor_us_per_token", None),
            ("p99 above the floor", "p99_above_floor_us", _TARGET_P99),
        ):
            ours, theirs = found["rbee"][key], found["zmq"][key]
            ratio = round(max(0.0, ours) / theirs, 4) if theirs > 0 else None
            verdict = {"what": what, "step_ms": step_ms, "rbee_us": ours, "zmq_us": theirs, "ratio": ratio}
            verdict |= {"allowed": allowed, "met": None if ratio is None or allowed is None else ratio <= allowed}
            if key == "cpu_us_per_token":
                verdict["floor_ratio"] = round(floor["cpu_us_per_token"] / TARGET_STREAMS / theirs, 4)
            verdicts.append(verdict)
    return verdicts


def report(result: dict[str, Any]) -> str:
    """All of it as Markdown."""
    parts = [
        f"At {TARGET_STREAMS} streams, rbee beside ZeroMQ + msgspec:",
        "\n".join(_verdict(verdict) for verdict in result["targets"])
        or "* not measured: it needs both, at 256 streams",
    ]
    for step_ms in sorted({level["step_ms"] for level in result["levels"]}):
        floor = next(floor for floor in result["floors"] if floor["step_ms"] == step_ms)
        parts += [f"## A step every {step_ms:g} ms", _cadence_table(result["levels"], floor, step_ms)]
    parts += ["## Saturated", _saturated_table(result["saturated"])]
    if result["syscalls"]:
        parts += ["## System calls per step", _syscalls_table(result["syscalls"])]
    return "\n\n".join(parts)


def plot(result: dict[str, Any], path: Path) -> None:
    """p50, p99 and CPU per token over the number of streams: one row per cadence, one line per contender."""
    import matplotlib as mpl  # noqa: PLC0415 - only --save needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the choice of the backend

    cadences = sorted({level["step_ms"] for level in result["levels"]})
    contenders = list(dict.fromkeys(level["contender"] for level in result["levels"]))
    panels = ("delivery p50, us", "delivery p99, us", "CPU per token, both processes, us")
    figure, axes = plt.subplots(len(cadences), 3, figsize=(15, 4.2 * len(cadences)), squeeze=False, sharex=True)
    for row, step_ms in zip(axes, cadences, strict=True):
        floor = next(floor for floor in result["floors"] if floor["step_ms"] == step_ms)
        for contender in contenders:
            levels = [
                level for level in result["levels"] if (level["contender"], level["step_ms"]) == (contender, step_ms)
            ]
            streams = [level["streams"] for level in levels]
            style = {"marker": "o", "linewidth": 2.5 if contender == "rbee" else 1.2}
            row[0].plot(streams, [level["delivery_us"]["p50"] for level in levels], label=contender, **style)
            row[1].plot(streams, [level["delivery_us"]["p99"] for level in levels], label=contender, **style)
            row[2].plot(streams, [level["cpu_us_per_token"] for level in levels], label=contender, **style)
        dashed = {"color": "black", "linestyle": "--", "label": "floor: bare wake"}
        for axis, percentile in ((row[0], "p50"), (row[1], "p99")):
            axis.axhline(floor["delivery_us"][percentile], **dashed)
        streams = sorted({level["streams"] for level in result["levels"]})
        row[2].plot(streams, [floor["cpu_us_per_token"] / level for level in streams], **dashed)
        for axis, title in zip(row, panels, strict=True):
            axis.set(title=f"{title}, a step every {step_ms:g} ms", xlabel="streams", xscale="log", yscale="log")
            axis.set_xticks(streams)
            axis.get_xaxis().set_major_formatter("{x:g}")
            axis.minorticks_off()
            axis.grid(visible=True, alpha=0.3)
        row[2].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _verdict(verdict: dict[str, Any]) -> str:
    text = (
        f"* {verdict['what']}, a step every {verdict['step_ms']:g} ms: "
        f"{verdict['rbee_us']:.3g} us to {verdict['zmq_us']:.3g} us"
    )
    ratio, allowed = verdict["ratio"], verdict["allowed"]
    if ratio is None:
        return f"{text}; ZeroMQ's is not above the floor in this run, so there is no ratio."
    text += f" = {ratio:.3f} of it"
    if allowed is not None:
        off = f"{abs(1 - ratio / allowed):.0%}"
        text += f", target {allowed:.3f}: "
        text += f"met, {off} below what is allowed" if verdict["met"] else f"MISSED, {off} above what is allowed"
    if "floor_ratio" in verdict:
        text += f" (the floor alone: {verdict['floor_ratio']:.3f})"
    return f"{text}."


def _markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _cost_cells(figures: dict[str, Any]) -> list[str]:
    return [f"{figures[f'{role}_cpu_us_per_token']:,.2f}" for role in ("producer", "consumer")] + [
        f"{figures['cpu_us_per_token']:,.2f}"
    ]


def _wait_cells(figures: dict[str, Any]) -> list[str]:
    cells = []
    for key in ("switches_per_step", "reads_writes_per_step"):
        producer, consumer = figures[f"producer_{key}"], figures[f"consumer_{key}"]
        cells.append("?" if producer is None else f"{producer:.1f} / {consumer:.1f}")
    return cells


def _cadence_table(levels: list[dict[str, Any]], floor: dict[str, Any], step_ms: float) -> str:
    head = (
        *("streams", "contender", *PERCENTILES, "p99 above floor", "p99 from due"),
        *("CPU/token producer", "consumer", "sum", "switches/step", "reads+writes/step"),
    )
    rows = []
    for level in [floor, *(level for level in levels if level["step_ms"] == step_ms)]:
        is_floor = level is floor
        rows.append(
            [
                "-" if is_floor else level["streams"],
                "floor: bare wake" if is_floor else level["contender"],
                *(f"{level['delivery_us'][name]:,.0f}" for name in PERCENTILES),
                "-" if is_floor else f"{level['p99_above_floor_us']:,.0f}",
                f"{level['intended_us']['p99']:,.0f}",
                *_cost_cells(level),
                *_wait_cells(level),
            ]
        )
    return _markdown(head, rows)


def _saturated_table(levels: list[dict[str, Any]]) -> str:
    head = ("streams", "contender", "tokens/s", "CPU/token producer", "consumer", "sum")
    rows = [
        [level["streams"], level["contender"], f"{level['tokens_per_s']:,}", *_cost_cells(level)] for level in levels
    ]
    return _markdown(head, rows)


def _syscalls_table(levels: list[dict[str, Any]]) -> str:
    rows = []
    for level in levels:
        names = [
            ", ".join(f"{name} {count:g}" for name, count in list(level[f"{role}_by_name"].items())[:4])
            for role in ("producer", "consumer")
        ]
        rows.append([level["streams"], level["contender"], level["producer"], names[0], level["consumer"], names[1]])
    return _markdown(("streams", "contender", "producer", "most of them", "consumer", "most of them"), rows)
