"""A protocol that streams/ has never seen, natively framed and through Python, with a real engine."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from rbee.server.assembly import engine_settings
from rbee.server.http.app import build_app
from rbee.server.link.supervisor import Supervisor
from rbee.server.streams.exchange import Backend
from rbee.server.streams.live import ReplyWatch
from rbee.transport import ServerState
from tests.server.asgi_parts import synthetic_config, synthetic_model, under_hypercorn, under_our_server
from tests.server.server_parts import expected
from tests.server.streams.toy_protocol import ToyApi, toy_refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.server.asgi_parts import Address

pytestmark = pytest.mark.anyio

PROMPT = "toy"
JOB = {"prompt": list(PROMPT.encode()), "max_tokens": 12}


@contextlib.asynccontextmanager
async def running_toy() -> AsyncIterator[tuple[Any, Supervisor, ToyApi]]:
    """An application that has the toy protocol only, its supervisor with a ready engine, and its routes."""
    supervisor = Supervisor(engine_settings(synthetic_config(step_ms=0.0)))
    toy = ToyApi(Backend(supervisor, synthetic_model().codec, ReplyWatch(5.0, 60.0)))
    await supervisor.start()
    try:
        await supervisor.wait_ready()
        yield build_app(toy.routes(), formats={"/toy": toy_refusal}), supervisor, toy
    finally:
        await supervisor.stop(5)


@contextlib.asynccontextmanager
async def client_of(address: Address) -> AsyncIterator[httpx.AsyncClient]:
    """A client of this server."""
    async with httpx.AsyncClient(base_url="http://{}:{}".format(*address), timeout=60) as client:
        yield client


async def started(client: httpx.AsyncClient, job: dict[str, Any]) -> str:
    """Start a job; its name."""
    name: str = (await client.post("/toy/jobs", json=job)).json()["job"]
    return name


def events(name: str, words: str, why: str) -> bytes:
    """The whole stream of a job."""
    parts = [f"event: started\ndata: {name}\n\n"]
    parts += [f'event: word\ndata: {{"word":"{word}","number":{n}}}\n\n' for n, word in enumerate(words)]
    return "".join([*parts, f'event: over\ndata: {{"why":"{why}","words":{len(words)}}}\n\n']).encode()


async def test_a_job_starts_before_its_stream_is_asked_for():
    """Natively framed under our server, through Python under another one and with stop strings: the same bytes."""
    words = expected(PROMPT, 12)
    async with running_toy() as (app, supervisor, _):
        async with under_our_server(app) as address, client_of(address) as client:
            name = await started(client, JOB)
            natively = await client.get(f"/toy/jobs/{name}")
            assert natively.content == events(name, words, "full")
            assert supervisor.client.counters()["direct_tokens"] == 12
            assert (await client.get(f"/toy/jobs/{name}")).text == "refused: No such job."
            name = await started(client, JOB | {"stops": ["never"]})
            in_python = await client.get(f"/toy/jobs/{name}")
            assert in_python.content == events(name, words, "full")
        async with under_hypercorn(app) as address, client_of(address) as client:
            name = await started(client, JOB)
            elsewhere = await client.get(f"/toy/jobs/{name}")
            assert elsewhere.content == events(name, words, "full")
        assert supervisor.client.counters()["direct_tokens"] == 12
        await supervisor.client.wait_idle()


async def test_an_unclaimed_job_waits_in_its_ring():
    """Its tokens wait, and cancelling it gives the ring back."""
    async with (
        running_toy() as (app, supervisor, toy),
        under_our_server(app) as address,
        client_of(address) as client,
    ):
        name = await started(client, JOB)
        assert supervisor.client.rings_in_use == 1
        toy.jobs.pop(name).cancel()
        await supervisor.client.wait_idle()


async def test_an_engine_that_dies_before_the_stream_is_asked_for():
    """The stream has the tokens that were committed, and ends with the protocol's own error."""
    async with (
        running_toy() as (app, supervisor, _),
        under_our_server(app) as address,
        client_of(address) as client,
    ):
        name = await started(client, JOB | {"max_tokens": 8000})
        supervisor.kill()
        while supervisor.state is not ServerState.DEAD:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0)
        stream = (await client.get(f"/toy/jobs/{name}")).content
        refused = await client.post("/toy/jobs", json=JOB)
    *words, failed = stream.split(b"\n\n")[1:-1]
    assert failed == b'event: failed\ndata: "The engine process died before this request was finished."'
    assert all(word.startswith(b"event: word\n") for word in words)
    assert (refused.status_code, refused.text[:8]) == (418, "refused:")
