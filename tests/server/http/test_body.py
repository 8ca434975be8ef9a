"""Where the work on a request's body is done."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from rbee.server.http.body import SMALL, Bodies
from rbee.server.http.writer import HAS_LEFT

pytestmark = pytest.mark.anyio

SCOPE = {"type": "http", "headers": []}


async def test_large_bodies_are_worked_on_one_after_the_other():
    """A small one does not wait for them; what is smaller still is not handed to a thread at all."""
    bodies = Bodies(2**20)
    began: list[str] = []
    may_end = threading.Event()

    def work(body: bytes, name: str) -> tuple[int, bool]:
        began.append(name)
        if name == "first":
            may_end.wait()
        return len(body), threading.current_thread() is threading.main_thread()

    def start(name: str, size: int) -> asyncio.Task[tuple[int, bool]]:
        return asyncio.ensure_future(bodies.work(Request(SCOPE), bytes(size), work, name))

    large = [start(name, SMALL + 1) for name in ("first", "second")]
    try:
        for _ in range(2):  # threads take what there is in turn: the second large one would be first
            assert await start("small", SMALL) == (SMALL, False)
        assert await start("tiny", 100) == (100, True)
        assert began == ["first", "small", "small", "tiny"]
    finally:
        may_end.set()
    assert await asyncio.gather(*large) == [(SMALL + 1, False)] * 2
    assert began[-1] == "second"


async def test_tiny_bodies_are_worked_on_in_one_turn_of_the_event_loop_each():
    """What is due between them comes between them, and one whose client leaves meanwhile is left out."""
    bodies = Bodies(2**20)
    order: list[str] = []
    has_left = False

    def turn() -> None:
        order.append("turn")
        asyncio.get_running_loop().call_soon(turn)

    def work(_: bytes, name: str) -> None:
        order.append(name)

    def start(name: str, scope: dict[str, Any]) -> asyncio.Task[None]:
        return asyncio.ensure_future(bodies.work(Request(scope), b"{}", work, name))

    started = [start(name, SCOPE) for name in ("first", "second", "third")]
    leaving = start("leaves", SCOPE | {"extensions": {HAS_LEFT: lambda: has_left}})
    asyncio.get_running_loop().call_soon(turn)
    await started[0]
    has_left = True
    await asyncio.gather(*started)
    with pytest.raises(ClientDisconnect):
        await leaving
    assert [name for name in order if name != "turn"] == ["first", "second", "third"]
    assert "turn" in order[order.index("first") : order.index("second")]
    assert "turn" in order[order.index("second") : order.index("third")]


async def test_small_bodies_that_are_quick_need_no_thread():
    """Unless they are longer than what may hold up the event loop."""
    bodies = Bodies(2**20, lambda body: body.startswith(b"quick"))

    def is_here(_: bytes) -> bool:
        return threading.current_thread() is threading.main_thread()

    async def work(body: bytes) -> bool:
        return await bodies.work(Request(SCOPE), body, is_here)

    assert await work(b"quick".ljust(2560, b","))
    assert not await work(b"quick".ljust(2561, b","))
    assert await work((b"quick" + b"," * 256).ljust(5120))
    assert not await work((b"quick" + b"," * 257).ljust(5120))
    assert await work((b"quick" + b'"' * 128).ljust(5120))
    assert not await work((b"quick" + b'"' * 129).ljust(5120))
    assert not await work(b"quick".ljust(5121))
    assert not await work(b"slow".ljust(2560))
    assert await work(b"slow".ljust(1024))
