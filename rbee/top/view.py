"""Shows an interval: on a terminal, as plain text, or as JSON.

Owns labels and layout, which fits into 80 columns and 24 lines. Does not know where the numbers come from.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Literal, TypeAlias

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rbee.top.interval import totals_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

    from rbee.top.interval import Interval
    from rbee.transport import Histogram

    Show: TypeAlias = Callable[[Interval | None], None]

Style = Literal["live", "plain", "json"]

_PATIENCE = 2.0  # seconds without a heartbeat that are worth a warning
_LABEL, _FAINT, _WARNING = "cyan", "dim", "bold red"
_BAR_WIDTH = 24
_QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
_ENGINE_EVENTS = {
    "tokens": "tokens",
    "steps": "steps",
    "wakes written": "wakes_written",
    "wakes elided": "wakes_elided",
    "engine wakes": "engine_wakes",
    "full-ring pauses": "full_ring_pauses",
    "preemptions": "preemptions",
    "cached tokens": "cached_prompt_tokens",
}
_SERVER_EVENTS = {
    "rendered natively": "direct_tokens",
    "rendered in Python": "python_tokens",
    "sends blocked": "blocked_sends",
    "finishes": "finishes",
    "cancels": "cancels",
    "stale wakeups": "stale_wakeups",
    "gc pauses": "gc_pauses",
}


@contextlib.contextmanager
def opened(style: Style, server: int) -> Iterator[Show]:
    """Within the block: a function that shows one interval; None means that the server has no engine now.

    `live` redraws a terminal, whose last view stays; elsewhere it is `plain`, one block of text after the other.
    """
    console = Console(highlight=False, markup=False)
    if style == "json":
        yield lambda interval: click.echo(_json(interval, server))
    elif style == "live" and console.is_terminal:
        last: list[RenderableType] = []

        def redraw(interval: Interval | None) -> None:
            last[:] = [draw(interval, server)]
            live.update(last[0], refresh=True)

        with Live(Text("measuring ..."), console=console, screen=True, auto_refresh=False) as live:
            try:
                yield redraw
            finally:
                live.stop()
                console.print(*last)
    else:
        yield lambda interval: console.print(draw(interval, server), Text())


def draw(interval: Interval | None, server: int) -> RenderableType:
    """Return the whole view."""
    if interval is None:
        return Text(f"rbee top  server {server}  no engine: it is being replaced, or the server ends", _WARNING)
    return Group(
        _identity(interval, server),
        _heartbeats(interval),
        _gauges(interval),
        Text(),
        _durations(interval),
        Text(),
        _events(interval),
        Text(f"Rates and durations of the last {interval.seconds:.1f} s; durations are known to 1/16.", _FAINT),
    )


def _json(interval: Interval | None, server: int) -> str:
    return json.dumps({"server_pid": server, "engine_state": "none"} if interval is None else interval.as_json())


def _identity(interval: Interval, server: int) -> Text:
    parts = {"server": server, "engine": interval.now.counters["engine_pid"] or "-", "epoch": interval.now.epoch}
    line = Text("rbee top")
    for label, value in parts.items():
        line.append(f"  {label} ", _LABEL).append(str(value), "bold")
    return line.append(f"  {interval.state}", "bold")


def _heartbeats(interval: Interval) -> Text:
    line = Text("heartbeats", _LABEL)
    for who, silence in (("engine", interval.engine_silence), ("server", interval.server_silence)):
        if silence is None:
            line.append(f"  {who}: none yet", _FAINT)
        elif silence > _PATIENCE and who == "engine" and interval.added["progress"]:
            line.append(f"  {who}: in a step for {silence:.1f} s", "default")
        elif silence > _PATIENCE:
            line.append(f"  {who}: silent for {silence:.1f} s", _WARNING)
        else:
            line.append(f"  {who}: {silence:.1f} s ago", "default")
    return line


def _gauges(interval: Interval) -> Table:
    counters = interval.now.counters
    table = Table.grid(padding=(0, 2))
    table.add_column(style=_LABEL)
    table.add_row("streams", Text(f"{counters['rings_in_use']:,}"))
    table.add_row(
        "sequences", Text(f"{counters['sequences_running']:,} running, {counters['sequences_waiting']:,} waiting")
    )
    if counters["kv_blocks"]:
        share = counters["kv_blocks_used"] / counters["kv_blocks"]
        bar = Table.grid(padding=(0, 2, 0, 0))
        bar.add_row(
            ProgressBar(total=1, completed=share, width=_BAR_WIDTH),
            Text(f"{counters['kv_blocks_used']:,} of {counters['kv_blocks']:,} blocks, {share:.1%}"),
        )
        table.add_row("KV cache", bar)
    else:
        table.add_row("KV cache", Text("not known yet", _FAINT))
    return table


def _durations(interval: Interval) -> Table:
    table = _right_aligned("", *_QUANTILES, "count", width=10)
    rows = {
        "step": "step",
        "wakeup": "wakeup",
        "delivery": "delivery",
        "event-loop lag": "loop_lag",
        "first token": "first_token",
        "token gap": "token_gap",
    }
    for label, name in rows.items():
        durations = interval.histograms[name]
        table.add_row(Text(label, _LABEL), *_quantiles(durations), quantity(durations.count))
    return table


def _events(interval: Interval) -> Table:
    """Counts in two columns: the engine's on the left, the server's on the right."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row(_rates(interval, _ENGINE_EVENTS), _rates(interval, _SERVER_EVENTS))
    return table


def _rates(interval: Interval, events: dict[str, str]) -> Table:
    table = _right_aligned("", "per s", "in all", width=9)
    notes = {
        "wakes elided": None if interval.elided_share is None else f"{interval.elided_share:.0%}",
        "cached tokens": None if interval.cached_share is None else f"{interval.cached_share:.0%}",
        "gc pauses": None if interval.gc_pause_mean_ns is None else duration(interval.gc_pause_mean_ns),
    }
    totals = totals_of(interval.now)
    for label, event in events.items():
        note = notes.get(label)
        bad = event == "stale_wakeups" and totals[event] > 0  # the transport promises that there are none
        table.add_row(
            Text(label if note is None else f"{label}, {note}", _WARNING if bad else _LABEL),
            Text(_rate(interval.rate(event)), _WARNING if bad else ""),
            Text(quantity(totals[event]), _WARNING if bad else ""),
        )
    return table


def _right_aligned(first: str, *others: str, width: int) -> Table:
    """An empty table of numbers with a label in front of each row."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style=_FAINT)
    table.add_column(first, min_width=19)
    for title in others:
        table.add_column(title, justify="right", width=width - 1)
    return table


def _quantiles(durations: Histogram) -> list[str]:
    return [duration(durations.quantile(fraction)) for fraction in _QUANTILES.values()]


def duration(ns: float | None) -> str:
    """At most eight characters; two or three digits are all that a histogram has."""
    if ns is None:
        return "-"
    for unit, size in (("us", 1e3), ("ms", 1e6)):
        value = ns / size
        if value < 999.5:
            return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"
    return f"{ns / 1e9:.1f} s"


def _rate(per_second: float) -> str:
    return f"{per_second:.1f}" if 0 < per_second < 99.95 else quantity(round(per_second))


def quantity(number: int) -> str:
    """At most seven characters."""
    for unit, size in (("", 1), ("k", 10**3), ("M", 10**6), ("G", 10**9)):
        if number < 100_000 * size:
            return f"{number // size:,}{unit}"
    return f"{number // 10**12:,}T"
