"""What tests of a running server ask it, and a server in this process in front of an engine that records."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import httpx

from rbee.config import ServerConfig
from rbee.models import synthetic
from rbee.server.assembly import assemble, make_door
from rbee.server.http.listener import HttpServer, listen
from rbee.server.text.grammars import GrammarChecks
from rbee.transport.observer import Observer
from tests.raw_client import COMPLETIONS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp

    from rbee.server.text.served_model import ServedModel
    from tests.conftest import Server
    from tests.fakes import RecordingEngine
    from tests.raw_client import Client

PATIENCE = 60.0  # seconds after which something that never comes fails a test


def expected(prompt: str, count: int) -> str:
    """What the synthetic model answers to a text."""
    return bytes(synthetic.expected_tokens(list(prompt.encode()), count)).decode()


def counters(server: Server) -> dict[str, int]:
    """What both processes have counted so far."""
    with Observer(server.pid) as observer:
        sample = observer.sample()
    assert sample is not None
    return sample.counters


async def rings_in_use(server: Server) -> int:
    """Rings that a request holds."""
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
        rings: int = (await client.get("/ready")).json()["rings_in_use"]
    return rings


async def until_rings(server: Server, number: int) -> None:
    """Wait until this many rings are in use."""
    async with asyncio.timeout(PATIENCE):
        while await rings_in_use(server) != number:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)


async def until_full(server: Server, number: int = 1) -> None:
    """Wait until the engine has found a ring full so many times since the server started."""
    async with asyncio.timeout(PATIENCE):
        while counters(server)["full_ring_pauses"] < number:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)


async def check_idle(client: Client, server: Server) -> None:
    """Every ring is back by the time that another request has run for 100 steps: those that held one were cancelled."""
    await client.read(COMPLETIONS, {"prompt": "a while", "max_tokens": 100})
    assert await rings_in_use(server) == 0


@contextlib.asynccontextmanager
async def serving_app(app: ASGIApp) -> AsyncIterator[str]:
    """The URL of our HTTP server in this process, in front of `app`."""
    with listen("127.0.0.1", 0) as sock:
        http = HttpServer(app)
        served = asyncio.ensure_future(http.serve(sockets=[sock]))
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            http.should_exit = True
            await served


@contextlib.asynccontextmanager
async def serving(engine: RecordingEngine, model: ServedModel) -> AsyncIterator[str]:
    """The URL of a whole server in front of `engine`: real routes, a real socket, a real arena."""
    with engine:
        config = ServerConfig(max_requests=64, replay_window=64)
        grammars = GrammarChecks(model.vocabulary)
        app = assemble(config, model, engine, make_door(config), grammars=grammars)  # type: ignore[arg-type] # a fake
        with contextlib.closing(grammars):
            async with asyncio.timeout(PATIENCE), serving_app(app) as url:
                yield url
