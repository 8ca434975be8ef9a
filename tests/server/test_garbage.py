"""When full collections come."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from rbee.server.garbage import collected_when_idle

pytestmark = pytest.mark.anyio


class Cycle:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def full_collections() -> int:
    """So far."""
    number: int = gc.get_stats()[2]["collections"]
    return number


async def turns(number: int) -> None:
    """Let the event loop go on."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_full_collections_wait_until_nothing_is_open():
    """However many objects there are meanwhile; one is enough then, and there is none without younger ones."""
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    idle = False
    with collected_when_idle(lambda: idle, period=0):
        assert gc.get_freeze_count() > frozen
        cycle = Cycle()
        left = weakref.ref(cycle)
        gc.collect(1)  # it is old now
        del cycle
        count = full_collections()
        alive: list[list[int]] = [[] for _ in range(300_000)]
        await turns(10)
        assert full_collections() == count
        assert left() is not None
        idle = True
        await turns(10)
        assert full_collections() == count + 1
        assert left() is None
        await turns(10)
        assert full_collections() == count + 1
        del alive
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)
