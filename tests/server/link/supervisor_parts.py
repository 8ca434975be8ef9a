"""What the tests of the supervisor share: one with a real engine process, and when that is started again."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

from rbee.server.link.restarts import RestartBudget
from rbee.server.link.supervisor import Supervisor
from tests.server.link.link_parts import SETTINGS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rbee.messages import Ready

PATIENCE = 60.0  # seconds after which a test that waits for the engine fails


@contextlib.asynccontextmanager
async def running(restarts: RestartBudget | None = None, **settings: Any) -> AsyncIterator[Supervisor]:
    """A supervisor whose engine has been started."""
    supervisor = Supervisor(dataclasses.replace(SETTINGS, **settings), restarts)
    await supervisor.start()
    try:
        yield supervisor
    finally:
        async with asyncio.timeout(2 * PATIENCE):
            await supervisor.stop(PATIENCE)


async def until_ready(supervisor: Supervisor) -> Ready:
    """The engine's description, when it is ready."""
    async with asyncio.timeout(PATIENCE):
        return await supervisor.wait_ready()


class Delays(RestartBudget):
    """A budget of restarts after these delays."""

    def __init__(self, *delays: float) -> None:
        super().__init__(len(delays), 60)
        self._delays = list(delays)

    def take(self) -> float | None:
        return self._delays.pop(0) if self._delays else None
