"""The numbers of a server in the formats of Prometheus.

Owns their names and units: vLLM's names where vLLM has the figure, else those of the lists in counters.h, so that a new
counter needs no line here. Everything is read when it is asked for; neither tokens nor requests call this module. Does
not know where events are counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.registry import Collector

from rbee.messages import FinishReason
from rbee.server.link.ends import BOUNDS
from rbee.transport import COUNTERS, HISTOGRAMS, EngineState, ServerState, bucket_start_near

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from prometheus_client.core import Metric

    from rbee.server.http.app import AnswerCounts
    from rbee.server.link.supervisor import Supervisor
    from rbee.transport import Sample

_PREFIX = "rbee:"
_VLLM_NAMES = {  # of counters and histograms of the arena
    "tokens": ["generation_tokens"],
    "preemptions": ["num_preemptions"],
    "sequences_running": ["num_requests_running"],
    "sequences_waiting": ["num_requests_waiting"],
    "prompt_tokens": ["prompt_tokens", "prefix_cache_queries"],
    "cached_prompt_tokens": ["prefix_cache_hits"],
    "first_token": ["time_to_first_token"],
    "token_gap": ["inter_token_latency"],
    "queue_time": ["request_queue_time"],
    "prefill_time": ["request_prefill_time"],
    "decode_time": ["request_decode_time"],
    "inference_time": ["request_inference_time"],
}
# Steps of 1, 2 and 5, each moved to the nearest start of an arena's bucket: 10 us to 500 s, and 1 to a million tokens.
_BOUNDS_NS = [bucket_start_near(digit * 10**power) for power in range(4, 12) for digit in (1, 2, 5)]
_BOUNDS_SECONDS = [bound / 1e9 for bound in _BOUNDS_NS]
# What is below a bound of whole tokens is at most one less.
_BOUNDS_TOKENS = [bucket_start_near(digit * 10**power + 1) for power in range(6) for digit in (1, 2, 5)]
_MOST_TOKENS = [float(bound - 1) for bound in _BOUNDS_TOKENS]


class Metrics(Collector):
    """All metrics of one server. Those of the arena are absent while there is no engine."""

    def __init__(self, supervisor: Supervisor, model: str, answered: AnswerCounts) -> None:
        self._supervisor = supervisor
        self._model = model
        self._answered = answered

    def render(self, accept: str) -> tuple[bytes, str]:
        """The text for the value of an Accept header, and its media type."""
        chosen, media_type = choose_encoder(accept)
        encode: Callable[..., bytes] = chosen
        # Our names need no escaping. Without this, OpenMetrics of prometheus-client 0.26 has "_" for their colon.
        return encode(self, escaping=ALLOWUTF8), media_type

    def collect(self) -> Iterator[Metric]:
        yield from self._of_server()
        sample = self._supervisor.sample()
        if sample is not None:
            yield from self._of_arena(sample)

    def _of_server(self) -> Iterator[Metric]:
        supervisor = self._supervisor
        state, ends = supervisor.state, supervisor.ends
        ready = state is ServerState.READY and not supervisor.leaving
        yield self._gauge("ready", "1 if new clients should come, as /ready has it, else 0.", ready)
        yield self._states(
            "server_state", "What the server does: 1 for its state, as /ready has it.", ServerState, state
        )
        yield self._counter(
            "engine_restarts",
            "Starts of another engine after a death, by the cause of the death: died or hung.",
            [((cause,), count) for cause, count in supervisor.restarts.items()],
            "cause",
        )
        yield self._counter(
            "request_success",
            "Sequences that ended, however they did; each choice of a request is one.",
            [((reason.name.lower(),), ends.by_reason[reason]) for reason in FinishReason],
            "finished_reason",
        )
        yield self._histogram(
            "e2e_request_latency_seconds",
            "A request received to the end of a sequence of it, however that ended.",
            zip(BOUNDS, ends.up_to_bounds(), strict=False),
            sum(ends.by_reason.values()),
            ends.seconds,
        )
        yield self._counter(
            "http_requests",
            "HTTP requests that ended, by status and by code of the refusal; 499: the client left before its answer.",
            [((str(status), code), count) for (status, code), count in sorted(self._answered.items())],
            "status",
            "code",
        )

    def _of_arena(self, sample: Sample) -> Iterator[Metric]:
        counters = sample.counters
        used = counters["kv_blocks_used"] / max(counters["kv_blocks"], 1)  # an engine that has just begun reports none
        yield self._gauge("kv_cache_usage_perc", "Share of the KV cache's blocks that are in use, 0 to 1.", used)
        yield self._gauge(
            "queued_prompt_tokens",
            "Prompt tokens of sequences that have not begun; see --max-queued-tokens.",
            self._supervisor.client.queued_tokens,
        )
        for name, kind, text in COUNTERS:
            value = counters[name]
            for shown in _VLLM_NAMES.get(name, [name]):
                if kind == "count":
                    base = shown.removesuffix("_ns")
                    if base == shown:
                        yield self._counter(shown, text, [((), value)])
                    else:
                        yield self._counter(f"{base}_seconds", text, [((), value / 1e9)])
                elif kind == "gauge":
                    yield self._gauge(shown, text, value)
        yield from self._statuses(sample)
        for name, unit, text in HISTOGRAMS:
            found = sample.histograms[name]
            described = f"{text} The sum is known to 1/32."
            for shown in _VLLM_NAMES.get(name, [name]):
                if unit == "ns":
                    counts = zip(_BOUNDS_SECONDS, found.below(_BOUNDS_NS), strict=True)
                    yield self._histogram(f"{shown}_seconds", described, counts, found.count, found.total / 1e9)
                else:
                    counts = zip(_MOST_TOKENS, found.below(_BOUNDS_TOKENS), strict=True)
                    yield self._histogram(shown, described, counts, found.count, found.total)

    def _statuses(self, sample: Sample) -> Iterator[Metric]:
        """The counters that are neither a count nor a gauge; the server's own state is not read from the arena."""
        counters = sample.counters
        yield self._states(
            "engine_state", "What the engine does: 1 for its state.", EngineState, counters["engine_state"]
        )
        for side in ("engine", "server"):
            if beat_ns := counters[f"{side}_heartbeat_ns"]:
                age = max(0, sample.taken_ns - beat_ns) / 1e9
                yield self._gauge(f"{side}_heartbeat_age_seconds", f"Time since the {side}'s last heartbeat.", age)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(_PREFIX + name, text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _states(self, name: str, text: str, states: type[ServerState | EngineState], present: int) -> Metric:
        """A gauge per state. A state set of OpenMetrics would need a label with the metric's name, colon included."""
        family = GaugeMetricFamily(_PREFIX + name, text, labels=["model_name", "state"])
        for state in states:
            family.add_metric([self._model, state.label], state == present)
        return family

    def _counter(self, name: str, text: str, counts: Iterable[tuple[Sequence[str], float]], *labels: str) -> Metric:
        """`counts` has the values of `labels`, and the count."""
        family = CounterMetricFamily(_PREFIX + name, text, labels=["model_name", *labels])
        for values, count in counts:
            family.add_metric([self._model, *values], count)
        return family

    def _histogram(self, name: str, text: str, counts: Iterable[tuple[float, int]], count: int, total: float) -> Metric:
        """`counts` has bounds, each with the number of values up to it."""
        family = HistogramMetricFamily(_PREFIX + name, text, labels=["model_name"])
        buckets = [(str(bound), number) for bound, number in counts]
        family.add_metric([self._model], [*buckets, ("+Inf", count)], total)
        return family
