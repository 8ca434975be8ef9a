"""Writes the table of metrics in docs/operating.md: `python -m tests.docs.metrics_table`.

Owns how the answer of a real server to GET /metrics becomes a table. Does not know any metric.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from rbee.config import Config, EngineConfig, ServerConfig
from rbee.server import assembly
from rbee.server.text import served_model
from tests.docs.generated_part import ROOT, GeneratedPart

if TYPE_CHECKING:
    from prometheus_client.core import Metric

PART = GeneratedPart(ROOT / "docs" / "operating.md", "metrics")
_EVERYWHERE = {"model_name", "le"}


def families() -> list[Metric]:
    """What a server answers after a request."""
    engine = EngineConfig(model="synthetic", synthetic_step_ms=1, kv_cache_mib=1)
    config = Config(engine=engine, server=ServerConfig(max_requests=64))
    app, supervisor = assembly.build(config, served_model.load_synthetic("synthetic"))
    with TestClient(app, base_url="http://localhost") as client:
        assert client.portal is not None
        client.portal.call(supervisor.wait_ready)
        client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 2})
        return list(text_string_to_metric_families(client.get("/metrics").text))


def table() -> str:
    """A line per metric, in the order of the answer."""
    lines = ["| metric | type | labels | value |", "|---|---|---|---|"]
    for family in families():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label: None for sample in family.samples for label in sample.labels if label not in _EVERYWHERE}
        lines.append(f"| `{name}` | {family.type} | {', '.join(sorted(labels))} | {family.documentation} |")
    return "\n".join([*lines, "", ""])


if __name__ == "__main__":
    PART.page.write_text(PART.filled(table()))
