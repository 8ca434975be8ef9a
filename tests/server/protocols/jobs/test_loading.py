"""GET /v1/loading/progress: from what an engine reports, and from a running server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from rbee.messages import Loading
from rbee.server import assembly
from rbee.server.protocols.jobs.loading import LoadingStream
from rbee.transport import ServerState
from tests.server.asgi_parts import synthetic_config, synthetic_model, under_hypercorn
from tests.server.protocols.jobs.events_parts import DONE, WHOLE, event_of, kinds, text_of
from tests.server.protocols.jobs.jobs_parts import JOBS, SHORT, JobClient
from tests.server.server_parts import PATIENCE, expected, serving_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

PROGRESS = "/v1/loading/progress"
NOTHING = {"layers_loaded": 0, "layers_total": 0, "memory_mb": 0}


class Engine:
    """A Supervisor without an engine: the test sets what it would say."""

    state = ServerState.STARTING
    progress: Loading | None = None
    restarting = False


async def events_of(response: httpx.Response) -> AsyncIterator[Any]:
    """The events, one by one."""
    async for line in response.aiter_lines():
        if line:
            yield event_of(line.encode())


async def test_each_change_is_an_event():
    """The first one is the present state; the last one is ready, and then the stream ends."""
    engine: Any = Engine()

    async def progress(_request: Any) -> LoadingStream:
        return LoadingStream(engine)

    app = Starlette(routes=[Route(PROGRESS, progress)])
    async with (
        asyncio.timeout(PATIENCE),
        serving_app(app) as url,
        httpx.AsyncClient(timeout=PATIENCE) as client,
        client.stream("GET", url + PROGRESS) as response,
    ):
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = events_of(response)
        assert await anext(events) == {"stage": "starting"} | NOTHING
        engine.state = ServerState.LOADING
        assert await anext(events) == {"stage": "loading"} | NOTHING
        for layers in (3, 30):
            engine.progress = Loading(
                stage="packing", done=1, total=9, layers_loaded=layers, layers_total=30, memory_bytes=5 << 20
            )
            packing = {"stage": "packing", "layers_loaded": layers, "layers_total": 30, "memory_mb": 5}
            assert await anext(events) == packing
        engine.progress = Loading(stage="ready", done=1, total=1, layers_loaded=30, layers_total=30)
        loaded = {"stage": "loaded", "layers_loaded": 30, "layers_total": 30, "memory_mb": 0}
        assert await anext(events) == loaded
        engine.state, engine.restarting = ServerState.DEAD, True
        assert await anext(events) == {"stage": "restarting"}
        engine.state = ServerState.READY
        assert [event async for event in events] == [{"stage": "ready"}, DONE]


@pytest.mark.parametrize(("state", "stage"), [(ServerState.DRAINING, "stopping"), (ServerState.DEAD, "failed")])
async def test_stream_ends_when_nothing_will_be_ready(state, stage):
    """The outcome is named."""
    engine: Any = Engine()
    engine.state = state

    async def progress(_request: Any) -> LoadingStream:
        return LoadingStream(engine)

    async with serving_app(Starlette(routes=[Route(PROGRESS, progress)])) as url, httpx.AsyncClient() as client:
        answer = await client.get(url + PROGRESS)
    assert [event_of(line.encode()) for line in answer.text.splitlines() if line] == [{"stage": stage}, DONE]


async def test_job_under_another_asgi_server():
    """From the start of the engine on: its progress, and then a whole job."""
    app = assembly.build(synthetic_config(), synthetic_model()).app
    async with (
        under_hypercorn(app) as (host, port),
        httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=PATIENCE) as client,
    ):
        async with client.stream("GET", PROGRESS) as response:
            *before, ready, done = [event async for event in events_of(response)]
        assert (ready, done) == ({"stage": "ready"}, DONE)
        assert {event["stage"] for event in before} <= {"starting", "loading"}
        job = (await client.post(JOBS, json=SHORT)).json()
        async with client.stream("GET", job["sse_url"]) as response:
            events = [event async for event in events_of(response)]
    assert (kinds(events), text_of(events)) == (WHOLE, expected("job", 12))


def progress_of(server: Any) -> list[Any]:
    """All events of a running server."""
    status, _, content = JobClient(server).ask("GET", PROGRESS)
    assert status == 200
    return [event_of(line) for line in content.splitlines() if line]


def test_ready_server(synthetic_server):
    """There is nothing left to wait for. HEAD is no way to ask."""
    assert progress_of(synthetic_server) == [{"stage": "ready"}, DONE]
    assert JobClient(synthetic_server).ask("HEAD", PROGRESS)[0] == 405


def test_server_that_starts_its_engine_again(start_server):
    """The stream lasts until the next engine is ready, or begins then."""
    with start_server("--model", "synthetic") as server:
        server.engine.kill()
        server.wait_for_log("the engine process died")
        *before, ready, done = progress_of(server)
        assert (ready, done) == ({"stage": "ready"}, DONE)
        assert {event["stage"] for event in before} <= {"restarting", "starting", "loading"}
