"""What the fault tests share: what a server holds for its clients."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import httpx
import psutil

from tests.server.server_parts import PATIENCE

if TYPE_CHECKING:
    from tests.conftest import Server


class Held(NamedTuple):
    """What a server holds: rings of requests (-1: it has no engine), descriptors of its process."""

    rings: int
    fds: int


async def held(server: Server) -> Held:
    """What the server holds, now; the connection that asks is gone before the descriptors are counted."""
    async with httpx.AsyncClient(base_url=server.url, headers={"Connection": "close"}) as client:
        rings = (await client.get("/ready")).json().get("rings_in_use", -1)
    return Held(rings, psutil.Process(server.pid).num_fds())


async def until_held(server: Server, wanted: Held) -> None:
    """Wait until the server holds exactly this."""
    async with asyncio.timeout(PATIENCE):
        while await held(server) != wanted:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
