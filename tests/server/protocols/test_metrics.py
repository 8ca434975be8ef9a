"""GET /metrics of running servers, read by Prometheus' own parsers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.testclient import TestClient

from rbee.config import Config, EngineConfig, ServerConfig
from rbee.server import assembly
from rbee.server.text import served_model
from rbee.transport import bucket_start_near
from tests.raw_client import CHAT, COMPLETIONS, Client, text_of
from tests.server.server_parts import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.core import Metric

    from tests.conftest import Server

pytestmark = pytest.mark.anyio

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
LONG_ANSWER = {"max_tokens": 8000, "stream": True}


class Scrape:
    """One answer: the value of each sample, by its name and the values of its labels but model_name."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = list(families)
        self._samples = {
            (
                sample.name,
                *(value for label, value in sorted(sample.labels.items()) if label != "model_name"),
            ): sample.value
            for family in self.families
            for sample in family.samples
        }
        self.models = {sample.labels["model_name"] for family in self.families for sample in family.samples}

    def __call__(self, name: str, *labels: str) -> Any:
        """A number, or None if there is no such sample. The labels are in the order of their names."""
        return self._samples.get((f"rbee:{name}", *labels))

    def of(self, name: str) -> dict[tuple[str, ...], float]:
        """All samples of a name, by their labels, without those that are 0."""
        return {key[1:]: value for key, value in self._samples.items() if key[0] == f"rbee:{name}" and value}

    def buckets(self, name: str) -> tuple[list[float], list[float]]:
        """Bounds and cumulative counts of a histogram, the infinite one included."""
        [family] = [family for family in self.families if family.name == f"rbee:{name}"]
        buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]
        return [float(sample.labels["le"]) for sample in buckets], [sample.value for sample in buckets]


def scrape(server: Server) -> Scrape:
    """What the server answers now."""
    answer = httpx.get(server.url + "/metrics", timeout=PATIENCE)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return Scrape(parse_text(answer.text))


async def until(server: Server, condition: Callable[[Scrape], object]) -> Scrape:
    """The first scrape of which the condition holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition(found := await asyncio.to_thread(scrape, server)):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
    return found


@pytest.fixture
def server(start_server: Callable[..., Server]) -> Iterator[Server]:
    """One that has had no request."""
    with start_server("--model", "synthetic", "--synthetic-step-ms", "1", "--served-model-name", "bee") as server:
        yield server


def client_of(*, max_model_len: int = 0, **options: Any) -> TestClient:
    """A client of an application in this process. Its engine starts with the client's block."""
    engine = EngineConfig(model="synthetic", synthetic_step_ms=1, kv_cache_mib=1, max_model_len=max_model_len)
    config = Config(engine=engine, server=ServerConfig(max_requests=64, **options))
    app, _ = assembly.build(config, served_model.load_synthetic("s"))
    return TestClient(app, base_url="http://localhost")


async def test_every_request_and_token_counts_once(server: Server) -> None:
    """Streamed by the native drain, streamed through Python, not streamed, and refused: all numbers are exact."""
    async with Client(server.address) as client:
        for _ in range(3):
            await client.read(COMPLETIONS, {"prompt": "hi", "max_tokens": 5})
        await client.read(COMPLETIONS, {"prompt": "hi", "max_tokens": 4, "n": 2})
        for _ in range(2):
            body = {"prompt": "hi", "max_tokens": 3, "stream": False}
            assert (await client.open(COMPLETIONS, body)).status == 200
        assert (await client.open(COMPLETIONS, {"prompt": "hi", "model": "no"})).status == 404
        assert (await client.open(COMPLETIONS, {"prompt": "hi", "n": 0})).status == 400
        assert (await client.open("/nowhere", {})).status == 404
    # Gauges are reported after the clients have their answers.
    found = await until(server, lambda found: found("num_requests_running") == found("rings_in_use") == 0)
    assert found.models == {"bee"}
    assert (found("ready"), found("server_state", "ready"), found("server_state", "dead")) == (1, 1, 0)
    assert found("generation_tokens_total") == found("tokens_drained_total") == 3 * 5 + 2 * 4 + 2 * 3
    assert found("direct_tokens_total") == 3 * 5
    assert found("prompt_tokens_total") == found("prefix_cache_queries_total") == 7 * 2
    assert found("finishes_total") == found("e2e_request_latency_seconds_count") == 7
    assert found.of("request_success_total") == {("length",): 7}
    assert found("time_to_first_token_seconds_count") == 3 + 2
    assert found("inter_token_latency_seconds_count") == 3 * 4 + 2 * 3
    for time in ("queue", "prefill", "decode", "inference"):
        assert found(f"request_{time}_time_seconds_count") == 7
    assert found("cancel_to_free_seconds_count") == 0
    for size, tokens in (("prompt", 7 * 2), ("generation", 3 * 5 + 2 * 4 + 2 * 3)):
        assert (found(f"request_{size}_tokens_count"), found(f"request_{size}_tokens_sum")) == (7, tokens)
    bounds, counts = found.buckets("request_generation_tokens")
    assert (bounds[:5], counts[:5]) == ([1, 2, 5, 10, 20], [0, 0, 7, 7, 7])
    bounds, counts = found.buckets("request_prompt_tokens")
    assert (bounds[-2:], counts[:3]) == ([507_903, float("inf")], [0, 7, 7])
    assert (found("rings_in_use"), found("num_requests_waiting"), found("num_preemptions_total")) == (0, 0, 0)
    answers = found.of("http_requests_total")
    del answers["", "200"]  # the scrapes are among them
    assert answers == {("model_not_found", "404"): 1, ("invalid_value", "400"): 1, ("not_found", "404"): 1}


async def test_prefix_cache_hits_are_tokens(server: Server) -> None:
    """The whole blocks of a prompt that was computed before."""
    async with Client(server.address) as client:
        for _ in range(2):
            await client.read(COMPLETIONS, {"prompt": "x" * 40, "max_tokens": 2})
    found = scrape(server)
    assert (found("prefix_cache_queries_total"), found("prefix_cache_hits_total")) == (80, 32)


async def test_queued_prompt_tokens(start_server: Callable[..., Server]) -> None:
    """Those of prompts that wait behind the sequences that run, until they begin or their clients leave."""
    options = ["--model", "synthetic", "--synthetic-step-ms", "1", "--max-num-seqs", "1"]
    with start_server(*options) as server:
        async with Client(server.address) as client:
            runs = await client.open(COMPLETIONS, {"prompt": "runs", **LONG_ANSWER})
            await anext(runs.events())
            assert scrape(server)("queued_prompt_tokens") == 0
            waits = [await client.open(COMPLETIONS, {"prompt": "x" * size, **LONG_ANSWER}) for size in (7, 50)]
            assert scrape(server)("queued_prompt_tokens") == 57
            waits[1].abort()
            await until(server, lambda found: found("queued_prompt_tokens") == 7)
            runs.abort()
            await until(server, lambda found: found("queued_prompt_tokens") == 0)
            await anext(waits[0].events())


async def test_buckets_are_those_of_the_arena(server: Server) -> None:
    """Every bound is the start of the arena's bucket that is nearest to 1, 2 or 5 times a power of ten."""
    async with Client(server.address) as client:
        await client.read(COMPLETIONS, {"prompt": "hi", "max_tokens": 50})
    found = scrape(server)
    nearest = [bucket_start_near(digit * 10**power) / 1e9 for power in range(4, 12) for digit in (1, 2, 5)]
    for name in ("time_to_first_token", "inter_token_latency", "delivery", "wakeup", "step", "loop_lag"):
        bounds, counts = found.buckets(f"{name}_seconds")
        assert bounds == [*nearest, float("inf")]
        assert counts == sorted(counts)
        assert counts[-1] == found(f"{name}_seconds_count") > 0
        assert 0 < found(f"{name}_seconds_sum") < PATIENCE
    assert min(nearest) == pytest.approx(10e-6, rel=1 / 32)
    assert max(nearest) == pytest.approx(500, rel=1 / 32)


async def test_reasons_are_those_that_clients_see(server: Server) -> None:
    """A stop string, a limit, and two clients that left: one of a stream, one that waited for its whole answer."""
    async with Client(server.address) as client:
        text = text_of(await client.read(COMPLETIONS, {"prompt": "hi", "max_tokens": 20}))
        body = {"prompt": "hi", "max_tokens": 8000}
        answer = await client.read(COMPLETIONS, {**body, "stop": text[10:12]})
        assert answer[-2]["choices"][0]["finish_reason"] == "stop"
        streamed = await client.open(COMPLETIONS, {**body, "stream": True})
        await anext(streamed.events())
        streamed.abort()
        _, waiting = await client.send(COMPLETIONS, {**body, "stream": False})
        await until(server, lambda found: found("rings_in_use"))
        waiting.transport.abort()
        found = await until(
            server, lambda found: found("rings_in_use") == 0 and found("http_requests_total", "", "499")
        )
    assert found.of("request_success_total") == {("stop",): 1, ("length",): 1, ("abort",): 2}
    assert found("cancels_total") == found("cancel_to_free_seconds_count") == 3
    assert found("http_requests_total", "", "499") == 1


async def test_death_of_the_engine_is_one_restart(server: Server) -> None:
    """Each scrape in between is an answer. Requests count on; what the new engine and its arena count is new."""
    async with Client(server.address) as client:
        for _ in range(2):
            await client.read(COMPLETIONS, {"prompt": "hi", "max_tokens": 5})
        stream = await client.open(CHAT, {"messages": [{"role": "user", "content": "hi"}], **LONG_ANSWER})
        events = stream.events()
        await anext(events)
        server.engine.kill()
        assert [event async for event in events][-1] == "[DONE]"
        found = await until(server, lambda found: found("ready"))
        assert found.of("request_success_total") == {("length",): 2, ("error",): 1}
        assert found.of("engine_restarts_total") == {("died",): 1}
        assert found("generation_tokens_total") == 0
        await client.read(COMPLETIONS, {"prompt": "hi", "max_tokens": 5})
    found = scrape(server)
    assert found("request_success_total", "length") == 3
    assert found("generation_tokens_total") == 5
    assert found("time_to_first_token_seconds_count") == 1


def test_without_an_engine_the_server_is_still_described() -> None:
    """Before the start, after a start that failed, and after the end: not ready, and nothing of an arena."""
    client = client_of(max_model_len=10_000)
    before = Scrape(parse_text(client.get("/metrics").text))
    with client:
        while client.get("/ready").json()["state"] != "dead":
            pass
        failed = Scrape(parse_text(client.get("/metrics").text))
    after = Scrape(parse_text(client.get("/metrics").text))
    for found, state in ((before, "starting"), (failed, "dead"), (after, "dead")):
        assert (found("ready"), found.of("server_state")) == (0, {(state,): 1})
        assert found("request_success_total", "stop") == 0
        assert found("generation_tokens_total") is None


def test_while_the_first_engine_starts_its_numbers_are_zero() -> None:
    """Its arena is there before it is: nothing is absent that comes later, and nothing has been counted."""
    with client_of() as client:
        starting = Scrape(parse_text(client.get("/metrics").text))
        while client.get("/ready").status_code != 200:
            pass
        ready = Scrape(parse_text(client.get("/metrics").text))
    assert starting("generation_tokens_total") == starting("kv_cache_usage_perc") == 0
    assert starting("request_queue_time_seconds_count") == 0
    appear_later = {"rbee:engine_heartbeat_age_seconds"}
    assert {family.name for family in ready.families} - {family.name for family in starting.families} <= appear_later


def test_openmetrics_has_the_same_samples() -> None:
    """If the Accept header asks for it: another format of the same names and labels, which its own parser takes."""
    with client_of() as client:
        while client.get("/ready").status_code != 200:
            pass
        text = client.get("/metrics")
        answer = client.get("/metrics", headers={"Accept": f"{OPENMETRICS};q=0.5, text/plain;version=0.0.4;q=0.3"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    keys = [
        {(sample.name, *sample.labels.items()) for family in families for sample in family.samples}
        for families in (parse_text(text.text), parse_openmetrics(answer.text))
    ]
    assert keys[0] == keys[1]


def test_a_key_is_needed() -> None:
    """As for every route but /health and /ready; a request without one counts."""
    client = client_of(api_key=("k",))
    assert client.get("/metrics").status_code == 401
    answer = client.get("/metrics", headers={"Authorization": "Bearer k"})
    assert answer.status_code == 200
    assert Scrape(parse_text(answer.text)).of("http_requests_total") == {("invalid_api_key", "401"): 1}
