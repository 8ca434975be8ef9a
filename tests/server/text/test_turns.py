"""Turns are dealt fairly, and so few wait that nobody's memory fills with them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from rbee.server.errors import Refusal, RefusalKind
from rbee.server.link.admission import ANYONE, Requester
from rbee.server.text.grammars import MOST_WAITING_OF_ONE, Found, GrammarChecks
from rbee.server.text.turns import NoPlaceError, Turns

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.anyio


def order_of(turns: Turns, asked: Iterable[tuple[str, str]]) -> list[str]:
    """The names of these holders' turns in the order in which they come, each ending before the next one begins."""
    waiting = {name: turns.ask(holder) for holder, name in asked}
    order: list[str] = []
    while len(order) < len(waiting):
        name = next(name for name, turn in waiting.items() if turn.has_come.done() and name not in order)
        order.append(name)
        turns.end(waiting[name])
    return order


async def test_holders_in_rotation():
    """Each has its own in order; one who comes later waits for one turn of each other."""
    asked = [("a", "a1"), ("a", "a2"), ("a", "a3"), ("a", "a4"), ("b", "b1"), ("b", "b2"), ("c", "c1")]
    assert order_of(Turns(1, most_of_one=9, most=9), asked) == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_one_turn_is_left_to_others():
    """Whoever asks first has all but one, however many these are."""
    turns = Turns(3, most_of_one=9, most=9)
    of_a = [turns.ask("a") for _ in range(5)]
    assert [turn.has_come.done() for turn in of_a] == [True, True, False, False, False]
    other = turns.ask("b")
    assert other.has_come.done()
    turns.end(other)
    assert not of_a[2].has_come.done()
    turns.end(of_a[0])
    assert of_a[2].has_come.done()


async def test_a_turn_that_several_want_comes_with_the_first_of_them():
    """It does not wait behind the others of who asked first, and comes once."""
    turns = Turns(1, most_of_one=2, most=9)
    first, other, shared = turns.ask("a"), turns.ask("a"), turns.ask("a")
    assert [turns.ask("b", shared) for _ in range(9)] == [shared] * 9
    turns.end(first)
    assert other.has_come.done()
    turns.end(other)
    assert shared.has_come.done()
    turns.end(shared)
    last = turns.ask("a")
    assert last.has_come.done()


async def test_a_turn_that_nobody_waits_for_is_left_out():
    """It takes no one's place."""
    turns = Turns(1, most_of_one=2, most=9)
    first, gone, last = turns.ask("a"), turns.ask("a"), turns.ask("a")
    turns.end(gone)
    turns.end(first)
    assert last.has_come.done()


async def test_so_many_wait():
    """Of one holder, and in all; who has come does not."""
    turns = Turns(1, most_of_one=2, most=3)
    first, *_ = (turns.ask("a") for _ in range(3))
    with pytest.raises(NoPlaceError):
        turns.ask("a")
    turns.ask("b")
    with pytest.raises(NoPlaceError) as caught:
        turns.ask("c")
    assert caught.value.num_ahead == 2
    turns.end(first)
    turns.ask("c")


class Bench:
    """A compiler that finds nothing wrong, when it is told to."""

    gone = False

    def __init__(self) -> None:
        self.asked: dict[str, asyncio.Future[Found]] = {}  # by source

    async def ask(self, source: str) -> Found:
        """Wait."""
        self.asked[source] = asyncio.get_running_loop().create_future()
        return await self.asked[source]

    def close(self) -> None:
        """Nothing is left."""


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_flood_of_grammars_does_not_delay_others():
    """While one client's are compiled and wait, another's is compiled at once, and the third's after one of them."""
    bench = Bench()

    async def start(_model: str) -> Bench:
        return bench

    checks = GrammarChecks("m", start)
    flood = [asyncio.create_task(checks.check(f"start: /{n}/", "f", holder="a")) for n in range(MOST_WAITING_OF_ONE)]
    await settle()
    assert list(bench.asked) == ["start: /0/"]
    simple = asyncio.create_task(checks.check("start: /b/", "f", holder="b"))
    await settle()
    assert list(bench.asked) == ["start: /0/", "start: /b/"]
    bench.asked["start: /b/"].set_result(Found(""))
    await simple
    await checks.check("start: /b/", "f", holder="c")  # which is known
    shared = asyncio.create_task(checks.check("start: /63/", "f", holder="c"))  # the last one of the flood
    await settle()
    assert list(bench.asked) == ["start: /0/", "start: /b/", "start: /63/"]
    assert not any(task.done() for task in flood)
    for task in (*flood, shared):
        task.cancel()
    for asked in bench.asked.values():
        asked.cancel()
    await settle()


async def test_too_many_grammars_of_one_client():
    """They are told to come back; others' are taken."""
    bench = Bench()

    async def start(_model: str) -> Bench:
        return bench

    checks = GrammarChecks("m", start)
    sources = [f"start: /{number}/" for number in range(MOST_WAITING_OF_ONE + 1)]  # one of which is compiled
    flood = [asyncio.create_task(checks.check(source, "f", holder="a")) for source in sources]
    await settle()
    with pytest.raises(Refusal, match="Wait for one of yours") as caught:
        await checks.check("start: /more/", "guided_regex", holder="a")
    refusal = caught.value
    assert (refusal.kind, refusal.param, refusal.retry_after) == (RefusalKind.OVERLOADED, "guided_regex", 1)
    other = asyncio.create_task(checks.check("start: /b/", "f", holder="b"))
    await settle()
    bench.asked["start: /b/"].set_result(Found(""))
    await other
    for task in flood:
        task.cancel()
    for asked in bench.asked.values():
        asked.cancel()
    await settle()


def test_holders():
    """A key is one, whatever it connects from; without keys all connections of an address are."""
    assert Requester(3, ("1.2.3.4", 5)).holder == Requester(3, ("1.2.3.5", 6)).holder
    assert Requester(None, ("1.2.3.4", 5)).holder == Requester(None, ("1.2.3.4", 6)).holder
    assert Requester(None, ("1.2.3.4", 5)).holder != Requester(None, ("1.2.3.5", 5)).holder
    assert ANYONE.holder is None
