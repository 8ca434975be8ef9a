"""What the fault tests share: what a server holds for its clients."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from tests.server.server_parts import PATIENCE

if TYPE_CHECKING:
    from tests.conftest import Server


class Held(NamedTuple):
    """What a server holds: rings of requests (-1: it has no engine), descriptors of its process."""

    rings: int
    fds: int


def memory_kb(server: Server) -> int:
    """Of the server process, what no file backs."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{server.pid}/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "VmSwap"))


async def held(server: Server) -> Held:
    """What the server holds, now, without the connection that asks.

    The answer is read until the server has closed its end. An HTTP client that has the whole body closes its own end
    at once, and on a busy machine the server's is still there when descriptors are counted.
    """
    reader, writer = await asyncio.open_connection(*server.address)
    try:
        writer.write(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        body = (await reader.read()).partition(b"\r\n\r\n")[2]
    finally:
        writer.close()
    return Held(json.loads(body).get("rings_in_use", -1), psutil.Process(server.pid).num_fds())


async def until_held(server: Server, wanted: Held) -> None:
    """Wait until the server holds exactly this."""
    async with asyncio.timeout(PATIENCE):
        while await held(server) != wanted:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
