"""POST /v1/embeddings as clients of a running server have it, OpenAI's own among them."""

from __future__ import annotations

import asyncio
import base64
import json
from array import array
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import openai
import pytest
from starlette.testclient import TestClient

from rbee.config import DEFAULT_MODEL
from rbee.models.synthetic import HIDDEN_SIZE
from rbee.pooling_params import PoolingParams
from rbee.server.assembly import build
from tests.embeddings_parts import LAST, MEAN, synthetic_vector
from tests.raw_client import COMPLETIONS, Client, text_of
from tests.server.asgi_parts import synthetic_config, synthetic_model
from tests.server.server_parts import PATIENCE, check_idle, counters, expected, rings_in_use, until_rings

pytestmark = pytest.mark.anyio

EMBEDDINGS = "/v1/embeddings"
TEXTS = ["The sea.", "é 海 🎉", "x", "a longer text " * 90]
MANY = [f"text {n} " * (1 + n % 7) for n in range(150)]  # more than the engine gets at once, and of several lengths


def close(vector, text, params=MEAN):
    """Whether it is the synthetic model's vector of a text, or of token ids."""
    prompt = list(text.encode()) if isinstance(text, str) else text
    return np.allclose(vector, synthetic_vector(prompt, params), rtol=0, atol=1e-6)


@pytest.fixture
def client(synthetic_server):
    """OpenAI's client, as users make it."""
    with openai.OpenAI(base_url=f"{synthetic_server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def http(synthetic_server):
    """A client that shows the body."""
    with httpx.Client(base_url=synthetic_server.url, timeout=PATIENCE) as made:
        yield made


@pytest.mark.parametrize("given", [TEXTS[0], TEXTS, [1, 2, 255], [[1, 2, 255], [7]]], ids=type)
@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}], ids=str)
def test_openai_client(client, given, encoding):
    """Its vectors are the model's, in the order of the inputs, and of length 1; by default it asks for base64."""
    answer = client.embeddings.create(model="synthetic", input=given, **encoding)
    inputs = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    assert [entry.index for entry in answer.data] == list(range(len(inputs)))
    vectors = [
        np.frombuffer(base64.b64decode(entry.embedding), "<f4") if isinstance(entry.embedding, str) else entry.embedding
        for entry in answer.data
    ]
    for vector, each in zip(vectors, inputs, strict=True):
        assert close(vector, each)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    tokens = sum(len(each.encode() if isinstance(each, str) else each) for each in inputs)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens, answer.model) == (tokens, tokens, "synthetic")


def test_base64_is_the_same_as_numbers(http):
    """Bit for bit."""
    numbers, encoded = (
        http.post(EMBEDDINGS, json={"input": TEXTS, "encoding_format": encoding}).json()["data"]
        for encoding in ("float", "base64")
    )
    for one, other in zip(numbers, encoded, strict=True):
        assert array("f", one["embedding"]).tobytes() == base64.b64decode(other["embedding"])


def test_many_inputs(http):
    """More than the engine gets at once, short and long ones: each has its own vector, and nothing is left."""
    answer = http.post(EMBEDDINGS, json={"input": MANY}).json()
    assert [entry["index"] for entry in answer["data"]] == list(range(len(MANY)))
    assert all(close(entry["embedding"], text) for entry, text in zip(answer["data"], MANY, strict=True))
    assert http.get("/ready").json()["rings_in_use"] == 0


def test_dimensions(client):
    """The first values, scaled to length 1 again."""
    [entry] = client.embeddings.create(model="synthetic", input="abc", dimensions=5).data
    assert len(entry.embedding) == 5
    assert close(entry.embedding, "abc", PoolingParams(method="mean", dimensions=5))


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"input": ""}, 400, "input", "invalid_value"),
        ({"input": ["a", 1]}, 400, "input", "invalid_type"),
        ({"input": "a", "dimensions": HIDDEN_SIZE + 1}, 400, "dimensions", "invalid_value"),
        ({"input": "a" * 9000}, 400, "input", "context_length_exceeded"),
        ({"input": ["a"] * 2049}, 400, "input", "invalid_value"),
        ({"input": "a", "model": "other"}, 404, "model", "model_not_found"),
        ({"input": "a", "unknown": 1}, 400, "unknown", "unknown_parameter"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refusals(http, fields, status, param, code):
    """OpenAI's envelope, with the field and a word for programs."""
    answer = http.post(EMBEDDINGS, json=fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code)


def test_openai_client_raises_its_own_errors(client):
    """So that its users find what they expect."""
    with pytest.raises(openai.BadRequestError, match="context length"):
        client.embeddings.create(model="synthetic", input="a" * 9000)


async def test_beside_streams(synthetic_server):
    """A stream's tokens are its own, whatever vectors are computed in its steps, and the other way round."""
    async with Client(synthetic_server.address) as raw, httpx.AsyncClient(base_url=synthetic_server.url) as http:
        streams = [asyncio.ensure_future(raw.read(COMPLETIONS, {"prompt": f"{n}", "max_tokens": 300})) for n in "abc"]
        answers = await asyncio.gather(*(http.post(EMBEDDINGS, json={"input": MANY}, timeout=60) for _ in range(3)))
        for answer in answers:
            vectors = [entry["embedding"] for entry in answer.json()["data"]]
            assert all(close(vector, text) for vector, text in zip(vectors, MANY, strict=True))
        assert [text_of(await stream) for stream in streams] == [expected(n, 300) for n in "abc"]


async def test_client_that_leaves(synthetic_server):
    """Its places are free, those of the inputs that wait were never taken."""
    async with Client(synthetic_server.address) as raw:
        with synthetic_server.stopped_engine():
            _, writer = await raw.send(EMBEDDINGS, {"input": MANY})
            await until_rings(synthetic_server, 32)
            writer.transport.abort()
        await until_rings(synthetic_server, 0)
        await check_idle(raw, synthetic_server)


async def test_counters(synthetic_server):
    """Prompts count as prompts, and a vector's values are no tokens."""
    async with httpx.AsyncClient(base_url=synthetic_server.url) as http:
        before, ends = counters(synthetic_server), await _ends(http)
        await http.post(EMBEDDINGS, json={"input": ["abc", "defgh"]})
        await until_rings(synthetic_server, 0)
        async with asyncio.timeout(PATIENCE):
            while counters(synthetic_server)["prompt_tokens"] != before["prompt_tokens"] + 8:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
        assert counters(synthetic_server)["tokens"] == before["tokens"]
        assert await _ends(http) == ends + 2


async def _ends(http):
    """Sequences that have ended with `stop`, as /metrics has them."""
    lines = (await http.get("/metrics")).text.splitlines()
    [line] = [each for each in lines if each.startswith("rbee:request_success_total{") and '"stop"' in each] or ["0"]
    return float(line.rpartition(" ")[2])


async def test_full_house_is_429(start_server):
    """Before anything runs, with the time to come back."""
    with start_server("--model", "synthetic", "--max-requests", "64") as server, server.stopped_engine():
        async with Client(server.address) as raw:
            for _ in range(64):
                await raw.open(COMPLETIONS, {"prompt": "long", "max_tokens": 8000, "stream": True})
            refused = await raw.open(EMBEDDINGS, {"input": "a"})
            assert refused.status == 429
            assert int(refused.headers["retry-after"]) >= 1


async def test_deadline_that_has_passed(synthetic_server):
    """The same as on every route."""
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    async with httpx.AsyncClient(base_url=synthetic_server.url) as http:
        answer = await http.post(EMBEDDINGS, json={"input": "a"}, headers={"X-Request-Deadline": past})
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "REQUEST_TIMEOUT")


async def test_engine_that_dies(start_server):
    """The client is told; with --retry-unstarted the next engine makes all vectors."""
    for options, status in (([], 503), (["--retry-unstarted"], 200)):
        with start_server("--model", "synthetic", "--synthetic-step-ms", "1", *options) as server:
            async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as http:
                engine = server.engine
                with server.stopped_engine():
                    waiting = asyncio.ensure_future(http.post(EMBEDDINGS, json={"input": MANY}))
                    await until_rings(server, 64)
                    engine.kill()
                answer = await waiting
            assert answer.status_code == status
            if status == 503:
                assert answer.json()["error"]["code"] == "engine_died"
                assert answer.headers["retry-after"]
            else:
                vectors = [entry["embedding"] for entry in answer.json()["data"]]
                assert all(close(vector, text) for vector, text in zip(vectors, MANY, strict=True))


async def test_line_in_the_log(start_server):
    """One per request, with its tokens, however many inputs it had."""
    options = ["--model", "synthetic", "--synthetic-step-ms", "1", "--log-format", "json"]
    with start_server(*options) as server:
        async with httpx.AsyncClient(base_url=server.url) as http:
            await http.post(EMBEDDINGS, json={"input": ["abc", "defgh"]}, headers={"X-Request-Id": "vectors"})
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    [line] = [line for line in lines if line.get("id") == "vectors"]
    found = {name: line[name] for name in ("path", "status", "finish", "prompt_tokens", "completion_tokens")}
    assert found == {
        "path": EMBEDDINGS,
        "status": 200,
        "finish": "stop",
        "prompt_tokens": 8,
        "completion_tokens": 0,
    }
    assert line["stream"].startswith("embd-")
    assert {"queue_ms", "duration_ms"} <= line.keys()
    assert "itl_ms" not in line


async def test_a_server_that_stops_lets_it_finish(start_server):
    """An open request goes on to its end, also with the inputs that the engine did not have yet."""
    with start_server("--model", "synthetic", "--synthetic-step-ms", "1") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as http:
            with server.stopped_engine():
                waiting = asyncio.ensure_future(http.post(EMBEDDINGS, json={"input": MANY}))
                await until_rings(server, 64)
                server.process.terminate()
                server.wait_for_log("stopping")
            assert len((await waiting).json()["data"]) == len(MANY)
        assert server.wait() == 0


async def test_pooling_option(start_server):
    """It replaces what the model says."""
    with start_server("--model", "synthetic", "--pooling", "last", "--synthetic-step-ms", "1") as server:
        async with httpx.AsyncClient(base_url=server.url) as http:
            answer = await http.post(EMBEDDINGS, json={"input": "abc"})
        assert close(answer.json()["data"][0]["embedding"], "abc", LAST)


async def test_a_model_without_pooling(default_server):
    """A model that was made to generate text is refused, with the option that says how it shall be pooled."""
    async with httpx.AsyncClient(base_url=default_server.url) as http:
        answer = await http.post(EMBEDDINGS, json={"input": "abc", "model": DEFAULT_MODEL})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "model", "no_pooling")
    assert "--pooling" in error["message"]
    assert await rings_in_use(default_server) == 0


def test_another_asgi_server():
    """The route needs nothing of ours but the application."""
    app, supervisor = build(synthetic_config(), synthetic_model())
    with TestClient(app, base_url="http://localhost") as client:
        client.portal.call(supervisor.wait_ready)
        answer = client.post(EMBEDDINGS, json={"input": MANY})
        vectors = [entry["embedding"] for entry in answer.json()["data"]]
        assert all(close(vector, text) for vector, text in zip(vectors, MANY, strict=True))
