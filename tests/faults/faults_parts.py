"""What the fault tests share: what a server's clients should get, and what it holds for them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import httpx
import psutil

from rbee.models import synthetic

if TYPE_CHECKING:
    from tests.conftest import Server

PATIENCE = 60.0  # seconds after which something that never comes fails a test


def expected(prompt: str, count: int) -> str:
    """What the synthetic model answers to a text."""
    return bytes(synthetic.expected_tokens(list(prompt.encode()), count)).decode()


class Held(NamedTuple):
    """What a server holds: rings of requests, descriptors of its process."""

    rings: int
    fds: int


async def held(server: Server) -> Held:
    """What the server holds, now; the connection that asks is gone before the descriptors are counted."""
    async with httpx.AsyncClient(base_url=server.url, headers={"Connection": "close"}) as client:
        rings = (await client.get("/ready")).json()["rings_in_use"]
    return Held(rings, psutil.Process(server.pid).num_fds())


async def until_held(server: Server, wanted: Held) -> None:
    """Wait until the server holds exactly this."""
    async with asyncio.timeout(PATIENCE):
        while await held(server) != wanted:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)


async def until_rings(server: Server, number: int) -> None:
    """Wait until this many rings are in use."""
    async with asyncio.timeout(PATIENCE):
        while (await held(server)).rings != number:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)


def resident_bytes(server: Server) -> int:
    """Memory of the server process."""
    return int(psutil.Process(server.pid).memory_info().rss)
