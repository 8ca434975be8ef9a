"""Spans for a collector: one per request, and below it one for what the engine did, sent as OTLP over HTTP.

Owns their names and attributes, and W3C trace context. A thread of the SDK sends them in batches; what a collector does
not take is dropped. Only here is opentelemetry imported, and only if spans are asked for.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rbee import __version__
from rbee.errors import ConfigError
from rbee.server.reports.request_log import PROBES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import Span

    from rbee.server.reports.finished import Figures, FinishedRequest, RequestTrace

_TRACES_PATH = "/v1/traces"  # of an endpoint that has none
_LAST_PATIENCE = 3.0  # seconds that the end of the server waits for the collector
_OPERATIONS = {"/v1/completions": "text_completion", "/v1/chat/completions": "chat", "/v1/embeddings": "embeddings"}
_CONTEXT_HEADERS = ("traceparent", "tracestate")


class Traces:
    """Sends spans to the collector at `endpoint`, an http or https URL, until it is closed.

    OpenTelemetry's variables (OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS ...) hold.

    Raises:
        ConfigError: another URL, or the extra is not installed.
    """

    def __init__(self, endpoint: str) -> None:
        url = urlsplit(endpoint)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ConfigError(
                f"--otlp-traces-endpoint is {endpoint!r}; it must be an http or https URL, as http://localhost:4318: "
                "spans are sent as OTLP over HTTP."
            )
        try:
            from opentelemetry import trace  # noqa: PLC0415 - no start without traces waits for these
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                f"--otlp-traces-endpoint needs an extra that is not installed ({error.name}): pip install "
                "'rbee[traces]'."
            ) from error
        exporter = OTLPSpanExporter(endpoint=endpoint if url.path.strip("/") else endpoint.rstrip("/") + _TRACES_PATH)
        resource = Resource.create({SERVICE_VERSION: __version__})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "rbee"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("rbee", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._trace = trace

    def begin(self, model: str, method: str, path: str, headers: Mapping[str, str]) -> RequestTrace | None:
        """A request to the server of this model has come; None for a probe."""
        if path in PROBES:
            return None
        given = {name: headers[name] for name in _CONTEXT_HEADERS if name in headers}
        span = self._tracer.start_span(
            method, self._propagator.extract(given) if given else None, self._trace.SpanKind.SERVER
        )
        context = span.get_span_context()
        answer = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}" if given else ""
        return _Trace(self, span, answer, model)

    def close(self) -> None:
        """Send what is left, for three seconds at most."""
        last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(_LAST_PATIENCE)

    def add_engine_span(self, server: Span, request: FinishedRequest, figures: Figures, model: str, zero: int) -> None:
        """`zero` is what CLOCK_MONOTONIC lacks to the time since 1970, in ns."""
        operation = _OPERATIONS.get(request.path, "generate_content")
        span = self._tracer.start_span(
            f"{operation} {model}",
            self._trace.set_span_in_context(server),
            attributes=_engine_attributes(figures, operation, model),
            start_time=figures.received_ns + zero,
        )
        for name, moment in (("started", figures.started_ns), ("first_token", figures.first_ns)):
            if moment:
                span.add_event(name, timestamp=moment + zero)
        if figures.refusal:
            self.fail(span, figures.refusal)
        span.end(max(figures.last_ns, figures.first_ns, figures.started_ns) + zero if figures.started_ns else None)

    def fail(self, span: Span, error: str) -> None:
        """Mark the span as failed; `error` is a word for programs."""
        span.set_attribute("error.type", error)
        span.set_status(self._trace.StatusCode.ERROR)


class _Trace:
    def __init__(self, traces: Traces, span: Span, traceparent: str, model: str) -> None:
        self.traceparent = traceparent
        self._traces = traces
        self._span = span
        self._model = model
        self._zero = time.time_ns() - time.monotonic_ns()

    def end(self, request: FinishedRequest) -> None:
        span, figures = self._span, request.figures
        if span.is_recording():
            if request.route:
                span.update_name(f"{request.method} {request.route}")
            span.set_attributes(_server_attributes(request))
            error = request.refusal or (figures.refusal if figures is not None else "")
            if request.status >= 500 or (error and request.status < 400):
                self._traces.fail(span, error or str(request.status))
            if figures is not None:
                self._traces.add_engine_span(span, request, figures, self._model, self._zero)
        span.end(request.ended_ns + self._zero)


def _server_attributes(request: FinishedRequest) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "http.request.method": request.method,
        "http.response.status_code": request.status,
        "url.path": request.path,
        "url.scheme": "http",
        "rbee.request.id": request.request_id,
    }
    if request.route:
        attributes["http.route"] = request.route
    if request.refusal:
        attributes["error.type"] = request.refusal
    return attributes


def _engine_attributes(figures: Figures, operation: str, model: str) -> dict[str, Any]:
    """OpenTelemetry's names; for latencies, in seconds, vLLM's."""
    sampling = figures.sampling
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "rbee",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": figures.answer_id,
        "gen_ai.response.finish_reasons": figures.finish.split(","),
        "gen_ai.usage.input_tokens": figures.prompt_tokens,
        "gen_ai.usage.output_tokens": figures.completion_tokens,
    }
    if sampling is not None:
        attributes |= {
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.top_k": sampling.top_k,
        }
    if figures.cached_tokens is not None:
        attributes["gen_ai.usage.cache_read.input_tokens"] = figures.cached_tokens
    times = {
        "gen_ai.latency.time_in_queue": figures.queue_ns,
        "gen_ai.latency.time_in_model_prefill": figures.prefill_ns,
        "gen_ai.latency.time_to_first_token": figures.ttft_ns,
        "gen_ai.latency.time_in_model_decode": figures.decode_ns,
    }
    return attributes | {name: ns / 1e9 for name, ns in times.items() if ns is not None}
