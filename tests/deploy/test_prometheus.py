"""A real Prometheus scrapes a real server: what the dashboard asks for is there, and the rules are evaluated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.deploy.prometheus_parts import PATIENCE, Programs, Prometheus, dashboard_expressions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Server


@pytest.fixture
def server(start_server: Callable[..., Server]) -> Iterator[Server]:
    """One of its own: it has had no request."""
    with start_server("--model", "synthetic", "--synthetic-step-ms", "1") as server:
        yield server


@pytest.fixture
def prometheus(programs: Programs, server: Server, tmp_path: Path) -> Iterator[Prometheus]:
    """It has scraped the server once, so that what comes then is an increase."""
    with Prometheus(programs.prometheus, tmp_path, server.address) as prometheus:
        prometheus.until(lambda: prometheus.query("rbee:ready") == [1])
        yield prometheus


def load(server: Server) -> None:
    """Streams, answers at once, clients that leave, and a refusal."""
    body = {"prompt": "hi", "max_tokens": 20}
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        for streamed in (True, False):
            assert client.post("/v1/completions", json={**body, "stream": streamed}).status_code == 200
        with client.stream("POST", "/v1/completions", json={**body, "stream": True, "max_tokens": 8000}) as answer:
            next(answer.iter_raw())
        assert client.post("/v1/completions", json={**body, "model": "no"}).status_code == 404


def test_dashboard_shows_a_number_in_every_place(server, prometheus):
    """After some load no expression of the dashboard is empty, and none is NaN."""
    load(server)
    expressions = dashboard_expressions()
    missing = set(expressions)

    def shown() -> bool:
        for expression in sorted(missing):
            values = prometheus.query(expression)
            if values and all(map(math.isfinite, values)):
                missing.remove(expression)
        return not missing

    try:
        prometheus.until(shown)
    finally:
        assert not missing
    assert prometheus.get("label/instance/values", **{"match[]": "rbee:ready"}) == [":".join(map(str, server.address))]


def test_healthy_server_raises_no_alert(server, prometheus):
    """Every rule is evaluated twice after the load was seen, without an error, and none is even pending."""
    load(server)
    prometheus.until(lambda: prometheus.query("rbee:cancel_to_free_seconds_count") == [1])
    for _ in range(2):
        before = {name: rule["lastEvaluation"] for name, rule in prometheus.rules().items()}
        prometheus.until(
            lambda before=before: all(
                rule["lastEvaluation"] != before[name] for name, rule in prometheus.rules().items()
            )
        )
    found = {(rule["state"], rule["health"]) for rule in prometheus.rules().values()}
    assert found == {("inactive", "ok")}


def test_death_of_the_engine_fires_its_alert_only(server, prometheus):
    """With its cause; and the server is ready again."""
    server.engine.kill()
    prometheus.until(prometheus.firing)
    assert prometheus.firing() == {"RbeeEngineRestarted"}
    alerts = prometheus.get("alerts")["alerts"]
    assert [alert["labels"]["cause"] for alert in alerts if alert["state"] == "firing"] == ["died"]
    prometheus.until(lambda: prometheus.query("rbee:ready") == [1])
    assert prometheus.query("sum (rbee:engine_restarts_total)") == [1]
