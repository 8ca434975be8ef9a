"""The Markdown tables of bench_delivery.py, with the verdict on the transport's targets."""

from __future__ import annotations

from typing import Any

from delivery_floor import PERCENTILES
from saving import table

_WAYS = ("default", "busy-poll", "through Python")


def tables(result: dict[str, Any]) -> str:
    """Everything, from what the program prints as JSON."""
    return (
        f"{result['steps']} steps per level, median of {result['rounds']} rounds; floor and rbee in turn.\n"
        f"Frames have {result['frame_bytes']} bytes. What a row means: docstring of `benchmarks/bench_delivery.py`.\n\n"
        f"## Targets\n\n{_targets(result['levels'])}\n\n"
        f"## Latency, microseconds\n\n{_latencies(result['levels'])}\n\n"
        f"## Where the time goes\n\n{_split(result['levels'])}"
    )


def _targets(levels: list[dict[str, Any]]) -> str:
    """Each target with what was measured, for every way that it is about."""
    rows = []
    for level in levels:
        floor = level["floor"]
        for way in _WAYS[:2]:
            name = f"{level['streams']} at {level['step_ms']:g} ms, {way}"
            ours = level[way]
            if level["streams"] == 1:
                for percentile, target in (("p50", 40), ("p99", 150)):
                    above = ours["delivery_us"][percentile] - floor["hop_us"][percentile]
                    rows.append([name, f"{percentile} above the floor", f"<= {target} us", f"{above:.0f} us"])
            if level["streams"] == 256:
                for percentile, most in (("p50", 1.5), ("p99", 2.0)):
                    ratio = ours["last_us"][percentile] / floor["last_us"][percentile]
                    what = f"last stream, {percentile} / (wake + {level['streams']} bare sends)"
                    rows.append([name, what, f"<= {most:g} (at 20 ms)", f"{ratio:.2f}"])
        ours = level["default"]
        above = ours["server_cpu_us_per_frame"] - floor["cpu_us_per_send"]
        rows.append([
            f"{level['streams']} at {level['step_ms']:g} ms, default",
            "server CPU per frame beyond a bare send",
            "<= 6 us, then 3 us",
            f"{above:.1f} us",
        ])  # fmt: skip
        writes = max(level[way]["server_says"]["wakes_written_per_step"] for way in _WAYS)
        rows.append(
            [f"{level['streams']} at {level['step_ms']:g} ms, all", "eventfd writes per step", "<= 1", f"{writes:g}"]
        )
    return table(["streams", "what", "target", "measured"], rows)


def _latencies(levels: list[dict[str, Any]]) -> str:
    rows = []
    for level in levels:
        named = {
            "floor: eventfd wake": level["floor"]["wake_us"],
            "floor: wake + bare send": level["floor"]["hop_us"],
            "floor: the last stream": level["floor"]["last_us"],
        }
        for way in _WAYS:
            named[f"rbee, {way}: commit -> read"] = level[way]["delivery_us"]
            named[f"rbee, {way}: the last stream"] = level[way]["last_us"]
            named[f"rbee, {way}: intended step -> read"] = level[way]["intended_us"]
        where = [f"{level['step_ms']:g} ms", str(level["streams"])]
        rows += [[*where, name, *(f"{figures[key]:,.0f}" for key in PERCENTILES)] for name, figures in named.items()]
    return table(["cadence", "streams", "what", *PERCENTILES], rows)


def _split(levels: list[dict[str, Any]]) -> str:
    rows = []
    for level in levels:
        bare = f"{level['floor']['cpu_us_per_send']:.2f}"
        rows.append([f"{level['step_ms']:g} ms", str(level["streams"]), "floor", "", "", "", bare, bare, "", "", ""])
        for way in _WAYS:
            says = level[way]["server_says"]
            rows.append([
                f"{level['step_ms']:g} ms",
                str(level["streams"]),
                way,
                f"{says['wakeup_p50_us']:.0f} / {says['wakeup_p99_us']:.0f}",
                f"{says['drain_us_per_token']:.2f}",
                f"{says['render_us_per_token']:.2f}" if says["direct_share"] else "in Python",
                f"{says['send_us_per_token']:.2f}" if says["direct_share"] else "in Python",
                f"{level[way]['server_cpu_us_per_frame']:.2f}",
                f"{says['wakes_written_per_step']:.2f}",
                f"{says['loop_lag_p99_us'] / 1e3:.1f} / {says['loop_lag_max_us'] / 1e3:.1f}",
                f"{says['gc_collections']:.0f} x {says['gc_mean_us']:.0f}",
            ])  # fmt: skip
    head = [
        "cadence", "streams", "way", "wakeup p50 / p99, us", "drain, us/token", "detokenize + frame, us/token",
        "send, us/token", "CPU, us/frame", "eventfd writes/step", "loop lag p99 / max, ms", "gc, count x us",
    ]  # fmt: skip
    return table(head, rows)
