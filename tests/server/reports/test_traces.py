"""Spans, as a collector on loopback gets them from a running server."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from rbee.errors import ConfigError
from rbee.server.reports.traces import Traces
from tests.raw_client import CHAT, COMPLETIONS
from tests.server.server_parts import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

SYNTHETIC = ["--model", "synthetic", "--synthetic-step-ms", "1"]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """An OTLP/HTTP receiver: keeps the resources and the spans that come."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.resources: list[dict[str, Any]] = []
        self.spans: list[Span] = []

    def take(self, path: str, body: bytes) -> None:
        """One request of the exporter."""
        self.paths.append(path)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(attributes(resource.resource))
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]


def attributes(of: Any) -> dict[str, Any]:
    """By name."""
    read: dict[str, Any] = {}
    for pair in of.attributes:
        value = getattr(pair.value, pair.value.WhichOneof("value"))
        read[pair.key] = [one.string_value for one in value.values] if hasattr(value, "values") else value
    return read


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    """A collector and its URL."""
    taken = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/x-protobuf"
            taken.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield taken, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_spans_of_requests(collector, start_server):
    """A server span below the client's, an engine span below that, with OpenTelemetry's names; no span for a probe."""
    taken, url = collector
    with start_server(*SYNTHETIC, "--otlp-traces-endpoint", url) as server:
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            client.get("/health")
            traced = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "mine"}
            body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "temperature": 0.5}
            answer = client.post(CHAT, json=body | {"stream": True}, headers=traced)
            assert "traceparent" not in client.get("/v1/models/other").headers
            assert client.get("/v1/models/").status_code == 404  # a name that is empty
            unsampled = client.get("/version", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        assert server.stop() == 0
    assert unsampled.headers["traceparent"].startswith(f"00-{TRACE}-")
    assert unsampled.headers["traceparent"].endswith("-00")
    assert set(taken.paths) == {"/v1/traces"}
    assert taken.resources[0]["service.name"] == "rbee"
    spans = {span.name: span for span in taken.spans}
    assert spans.keys() == {f"POST {CHAT}", "chat synthetic", "GET /v1/models/{name}"}
    assert len([span for span in taken.spans if span.name == "GET /v1/models/{name}"]) == 2

    root = spans[f"POST {CHAT}"]
    assert (root.trace_id.hex(), root.parent_span_id.hex(), root.kind) == (TRACE, PARENT, Span.SPAN_KIND_SERVER)
    assert answer.headers["traceparent"] == f"00-{TRACE}-{root.span_id.hex()}-01"
    assert attributes(root) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": CHAT,
        "url.path": CHAT,
        "url.scheme": "http",
        "rbee.request.id": "mine",
    }

    engine = spans["chat synthetic"]
    assert (engine.trace_id.hex(), engine.parent_span_id, engine.kind) == (
        TRACE,
        root.span_id,
        Span.SPAN_KIND_INTERNAL,
    )
    values = attributes(engine)
    latencies = {name: values.pop(name) for name in list(values) if name.startswith("gen_ai.latency.")}
    assert values.pop("gen_ai.response.id") in answer.text
    assert values == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "rbee",
        "gen_ai.request.model": "synthetic",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.top_k": 0,
        "gen_ai.response.model": "synthetic",
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": len("user: hi\nassistant: "),
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 0,
    }
    queue, prefill = latencies["gen_ai.latency.time_in_queue"], latencies["gen_ai.latency.time_in_model_prefill"]
    assert latencies["gen_ai.latency.time_to_first_token"] == pytest.approx(queue + prefill)
    started, first = engine.events
    assert (started.name, first.name) == ("started", "first_token")
    moments = [engine.start_time_unix_nano, started.time_unix_nano, first.time_unix_nano, engine.end_time_unix_nano]
    assert moments == sorted(moments)
    assert root.start_time_unix_nano <= moments[0]
    assert moments[-1] <= root.end_time_unix_nano
    assert latencies["gen_ai.latency.time_in_model_decode"] == pytest.approx((moments[3] - moments[2]) / 1e9)

    refused = spans["GET /v1/models/{name}"]
    assert refused.parent_span_id == b""
    assert attributes(refused)["error.type"] == "model_not_found"
    assert refused.status.code == Status.STATUS_CODE_UNSET, "a mistake of the client is none of the server"


def test_span_of_a_stream_that_dies_with_the_engine(collector, start_server):
    """Both spans have failed."""
    taken, url = collector
    options = ["--max-restarts", "0", "--otlp-traces-endpoint", f"{url}/v1/traces"]
    with start_server(*SYNTHETIC, *options) as server:
        body = {"prompt": "long", "max_tokens": 8000, "stream": True}
        with httpx.stream("POST", f"{server.url}{COMPLETIONS}", json=body, timeout=PATIENCE) as response:
            lines = response.iter_lines()
            next(lines)
            server.engine.kill()
            assert "engine_died" in "".join(lines)
        assert server.wait() == 1
    assert sorted(span.name for span in taken.spans) == [f"POST {COMPLETIONS}", "text_completion synthetic"]
    for span in taken.spans:
        assert (span.status.code, attributes(span)["error.type"]) == (Status.STATUS_CODE_ERROR, "engine_died")


def test_collector_that_is_not_there(start_server):
    """Requests and the end of the server do not wait for it."""
    with start_server(*SYNTHETIC, "--otlp-traces-endpoint", "http://127.0.0.1:9") as server:
        answer = httpx.post(f"{server.url}{COMPLETIONS}", json={"prompt": "a", "max_tokens": 3}, timeout=PATIENCE)
        assert answer.status_code == 200
        assert server.stop() == 0


@pytest.mark.parametrize("endpoint", ["grpc://localhost:4317", "localhost:4318", "http://"])
def test_endpoint_that_is_none(endpoint):
    """A sentence that names the option and the remedy."""
    with pytest.raises(ConfigError, match="it must be an http or https URL"):
        Traces(endpoint)


def test_nothing_is_imported_without_the_option():
    """No start without traces waits for the SDK."""
    code = "import sys, rbee.server.process; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"
