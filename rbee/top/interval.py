"""What happened between two samples of an arena, and the state at the second one.

Owns rates, shares and percentiles, and their JSON. Does not know where samples come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from rbee.transport import COUNTS, GAUGES, HISTOGRAMS, EngineState, ServerState

if TYPE_CHECKING:
    from rbee.transport import Histogram, Sample

EVENTS = (*COUNTS, "python_tokens")  # the arena's counts, and the records that went through the server's Python


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of one epoch."""

    seconds: float
    now: Sample  # at its end
    added: dict[str, int]  # by how much each of EVENTS has grown
    histograms: dict[str, Histogram]  # what was counted in the interval

    @classmethod
    def between(cls, before: Sample | None, now: Sample, seconds: float) -> Self:
        """The `seconds` from `before` to `now`; all that `now` has counted, if `before` has no or an earlier epoch."""
        totals = totals_of(now)
        if before is None or before.epoch != now.epoch:
            return cls(seconds, now, totals, now.histograms)
        earlier = totals_of(before)
        return cls(
            seconds,
            now,
            # python_tokens is a difference of counters that are read one after the other, so it may shrink by a few.
            {name: max(0, totals[name] - earlier[name]) for name in EVENTS},
            {name: durations.minus(before.histograms[name]) for name, durations in now.histograms.items()},
        )

    @property
    def state(self) -> str:
        return _name(EngineState, self.now.counters["engine_state"])

    @property
    def engine_silence(self) -> float | None:
        """Seconds since the engine's heartbeat; None if there never was one."""
        return self._age(self.now.counters["engine_heartbeat_ns"])

    @property
    def server_silence(self) -> float | None:
        """Seconds since the server's heartbeat; None if there never was one."""
        return self._age(self.now.counters["server_heartbeat_ns"])

    @property
    def elided_share(self) -> float | None:
        """The share of commits that needed no wakeup of the server, 0 to 1; None without a commit."""
        return _ratio(self.added["wakes_elided"], self.added["wakes_elided"] + self.added["wakes_written"])

    @property
    def cached_share(self) -> float | None:
        """The share of prompt tokens that were found in the prefix cache, 0 to 1; None without any."""
        return _ratio(self.added["cached_prompt_tokens"], self.added["prompt_tokens"])

    @property
    def gc_pause_mean_ns(self) -> float | None:
        """None without a garbage collection."""
        return _ratio(self.added["gc_pause_ns"], self.added["gc_pauses"])

    def rate(self, event: str) -> float:
        """One of EVENTS, per second."""
        return self.added[event] / self.seconds

    def as_json(self) -> dict[str, Any]:
        """Everything, for scripts: a name ends with its unit; null where nothing happened."""
        return {
            "server_pid": self.now.server_pid,
            "epoch": self.now.epoch,
            "engine_pid": self.now.counters["engine_pid"],
            "engine_state": self.state,
            "server_state": _name(ServerState, self.now.counters["server_state"]),
            "engine_silence_s": _rounded(self.engine_silence, 3),
            "server_silence_s": _rounded(self.server_silence, 3),
            "interval_s": _rounded(self.seconds, 3),
            "streams": self.now.counters["rings_in_use"],
            **{name: self.now.counters[name] for name in GAUGES},
            "per_second": {name: _rounded(self.rate(name), 3) for name in EVENTS},
            "since_epoch_start": totals_of(self.now),
            "wakes_elided_share": _rounded(self.elided_share, 4),
            "prompt_cached_share": _rounded(self.cached_share, 4),
            "gc_pause_mean_us": _us(self.gc_pause_mean_ns),
            **{
                f"{name}_us" if unit == "ns" else name: _percentiles(
                    self.histograms[name], 1e3 if unit == "ns" else 1.0
                )
                for name, unit, _ in HISTOGRAMS
            },
        }

    def _age(self, heartbeat_ns: int) -> float | None:
        return max(0, self.now.taken_ns - heartbeat_ns) / 1e9 if heartbeat_ns else None


def totals_of(sample: Sample) -> dict[str, int]:
    """Each of EVENTS since the epoch's start."""
    counters = sample.counters
    python_tokens = max(0, counters["tokens_drained"] - counters["direct_tokens"])
    return {name: counters[name] for name in COUNTS} | {"python_tokens": python_tokens}


def _name(states: type[EngineState | ServerState], number: int) -> str:
    return states(number).label if number in set(states) else f"state {number}"


def _percentiles(histogram: Histogram, scale: float) -> dict[str, float | int | None]:
    quantiles = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}
    values = {name: histogram.quantile(fraction) for name, fraction in quantiles.items()}
    return {
        "count": histogram.count,
        **{name: None if value is None else round(value / scale, 3) for name, value in values.items()},
    }


def _us(ns: float | None) -> float | None:
    return None if ns is None else round(ns / 1e3, 3)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
