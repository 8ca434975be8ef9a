"""The description of the routes: it is all of them, and the server does what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import jsonschema_rs
import msgspec
import pytest
from starlette.routing import Route

from rbee.config import Config, EngineConfig, ServerConfig
from rbee.server import assembly
from rbee.server.protocols.openapi import Body, Operation, document
from rbee.server.protocols.parameters import GenerationRequest
from rbee.server.text import served_model
from tests.raw_client import CHAT, COMPLETIONS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Server

_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
_PATIENCE = 400.0  # seconds for all requests


@pytest.fixture(scope="module")
def described(start_server: Callable[..., Server]) -> Server:
    """A server whose longest answer is short."""
    return start_server(
        *("--model", "synthetic", "--synthetic-step-ms", "0.05", "--max-model-len", "256", "--job-ttl", "5")
    )


def described_by(server: Server) -> dict[str, Any]:
    """Its document."""
    shown: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").raise_for_status().json()
    return shown


def test_every_route_is_described(described: Server) -> None:
    """And nothing else."""
    config = Config(engine=EngineConfig(model="synthetic"), server=ServerConfig())
    app, _ = assembly.build(config, served_model.load_synthetic("s"))
    routes = {
        (method.lower(), route.path.replace(":path}", "}"))
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    paths = described_by(described)["paths"]
    assert {(method, path) for path, methods in paths.items() for method in methods} == routes


def test_the_server_does_what_it_says(described: Server, tmp_path: Path) -> None:
    """No 500, no hang, no status or answer that is not in the document, whatever schemathesis sends."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{described.url}/openapi.json"]
    options = ["--checks", _CHECKS, "--phases", "coverage,fuzzing", "--max-examples", "5", "--seed", "1"]
    options += ["--request-timeout", "60", "--generation-database", ":memory:", "--no-color"]
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=_PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "Traceback" not in described.log.read_text()


class Toy(GenerationRequest, frozen=True, kw_only=True):
    """A request of a protocol that has no `n`."""

    foreign_fields = {"n": None}  # noqa: RUF012 - as the protocols' own

    text: str


def toy(*, lenient: bool = False) -> dict[str, Any]:
    """The schema of its body."""
    body = Body(Toy, advisory={"label"}, neutral={"tools": ([],)}, synonyms={"n_predict": "max_tokens"})
    shown = document([Operation("POST", "/toy", "A toy.", body)], lenient=lenient)
    msgspec.json.encode(shown)
    return {**shown["components"]["schemas"]["Toy"], "components": shown["components"]}


@pytest.mark.parametrize(
    ("fields", "is_right"),
    [
        ({}, True),
        ({"max_tokens": None, "temperature": 1, "top_k": 3.0}, True),
        ({"label": {"any": "thing"}, "tools": [], "n_predict": 5}, True),
        ({"tools": None}, True),
        ({"text": None}, False),
        ({"temperature": -1}, False),
        ({"n": 1}, False),
        ({"n_predict": "5"}, False),
        ({"tools": [1]}, False),
        ({"other": 1}, False),
    ],
)
def test_the_schema_of_a_body(*, fields: dict[str, Any], is_right: bool) -> None:
    """Ranges, other names, null, and the three classes of fields are in it."""
    request = {"text": "x", **fields}
    assert jsonschema_rs.is_valid(toy(), request) is is_right
    assert jsonschema_rs.is_valid(toy(lenient=True), request) is (is_right or "other" in fields or "n" in fields)


def test_keys_are_described() -> None:
    """But for the routes that need none."""
    operations = [Operation("GET", "/a", "A."), Operation("GET", "/b", "B.", needs_key=False)]
    shown = document(operations, has_keys=True)
    assert shown["security"] == [{"bearer": []}, {"x-api-key": []}]
    assert "security" not in shown["paths"]["/a"]["get"]
    assert shown["paths"]["/b"]["get"]["security"] == []
    assert "security" not in document(operations)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "hi"}], "temperature": 3, "seed": -1, "tools": []}),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 2, "n_predict": 3, "store": True}),
    ],
)
def test_what_is_served_is_valid(described: Server, path: str, body: dict[str, Any]) -> None:
    """By the schema of its route."""
    shown = described_by(described)
    reference = shown["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert jsonschema_rs.is_valid({**reference, "components": shown["components"]}, json.loads(json.dumps(body)))
    assert httpx.post(f"{described.url}{path}", json=body).status_code == 200


def test_the_page_loads_nothing_from_elsewhere(described: Server) -> None:
    """Its policy says so, and the page names no other host."""
    page = httpx.get(f"{described.url}/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "://" not in page.text
