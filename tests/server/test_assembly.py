"""The application under an ASGI server that is not ours: no socket, no uvicorn, the engine in its lifespan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from rbee.config import Config, EngineConfig, ServerConfig
from rbee.errors import ConfigError, EngineUnavailableError
from rbee.server import assembly
from rbee.server.link.admission import Admission
from rbee.server.text import served_model

if TYPE_CHECKING:
    from rbee.server.assembly import Assembly


def build(**engine: Any) -> Assembly:
    """A server of the synthetic model."""
    config = Config(
        engine=EngineConfig(model="synthetic", synthetic_step_ms=1, kv_cache_mib=1, **engine),
        server=ServerConfig(max_requests=65),
    )
    return assembly.build(config, served_model.load_synthetic("s"))


@pytest.mark.parametrize("times", [1, 2])
def test_lifespan_runs_the_engine(times: int) -> None:
    """Within the client's block the engine is started, gets ready and is shown; afterwards it is gone."""
    app, supervisor = build()
    for _ in range(times - 1):
        with TestClient(app, base_url="http://localhost"):
            pass
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/health").json() == {"status": "ok"}
        client.portal.call(supervisor.wait_ready)
        ready = client.get("/ready")
        assert ready.status_code == 200
        assert ready.json()["state"] == "ready"
        assert ready.json()["engine"]["runner"] == "synthetic"
        assert client.get("/v1/models").json()["data"][0]["id"] == "s"
    assert supervisor.state.label == "dead"


def test_engine_that_cannot_start_leaves_the_application_up() -> None:
    """/health answers, /ready says why not, and the reason is where a start waits for the engine."""
    app, supervisor = build(max_model_len=10_000)
    with TestClient(app, base_url="http://localhost") as client:
        with pytest.raises(EngineUnavailableError, match="--max-model-len"):
            client.portal.call(supervisor.wait_ready)
        assert client.get("/health").status_code == 200
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["state"], ready.headers["retry-after"]) == (503, "dead", "10")


def test_every_value_of_the_config_arrives() -> None:
    """The settings of the engine's process are those of the config; rings come in multiples of 64."""
    server = ServerConfig(
        max_requests=65,
        max_queued_requests=7,
        max_queued_tokens=9,
        max_requests_per_key=3,
        api_key=("k",),
        slow_reader_timeout=3,
        ring_capacity=8,
        busy_poll=True,
        retry_unstarted=True,
    )
    engine = EngineConfig(max_num_seqs=5)
    settings = assembly.engine_settings(Config(engine=engine, server=server, debug=True))
    assert (settings.config, settings.num_rings, settings.ring_capacity) == (engine, 128, 8)
    assert settings.admission == Admission(
        max_num_seqs=5, max_queued_requests=7, max_queued_tokens=9, max_requests_per_key=3
    )
    assert (settings.slow_reader_timeout, settings.busy_poll, settings.debug) == (3, True, True)
    assert settings.retry_unstarted


def test_limit_per_key_needs_keys() -> None:
    """It would mean nothing without."""
    with pytest.raises(ConfigError, match="--api-key"):
        Config(engine=EngineConfig(), server=ServerConfig(max_requests_per_key=3))
