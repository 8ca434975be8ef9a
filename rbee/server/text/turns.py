"""Turns at what takes long, dealt fairly to those who want them.

Owns who is next, and how many may wait. Does not know what a turn is for, or who its holders are.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable


class NoPlaceError(Exception):
    """Too many wait already. One of them has its turn after so many others at most."""

    def __init__(self, num_ahead: int) -> None:
        super().__init__(num_ahead)
        self.num_ahead = num_ahead


class Turn:
    """One of the turns: waits for it, and has it until `Turns.end`. Several holders may want the same."""

    def __init__(self) -> None:
        self.has_come = asyncio.get_running_loop().create_future()
        self.holder: Hashable = None  # whose share it counts in, once it has come


class Turns:
    """So many turns at once. The holders have them in rotation, each its own in the order in which it asked.

    One holder has all of them but one at most: another one need not wait for any of his to end.

    Args:
        at_once: turns.
        most_of_one: turns that one holder may wait for.
        most: turns that all may wait for.
    """

    def __init__(self, at_once: int, *, most_of_one: int, most: int) -> None:
        self._at_once = at_once
        self._most_of_one = most_of_one
        self._most = most
        self._waiting: OrderedDict[Hashable, deque[Turn]] = OrderedDict()  # by holder, who is next first
        self._running: Counter[Hashable] = Counter()  # by holder

    def ask(self, holder: Hashable, turn: Turn | None = None) -> Turn:
        """A turn of this holder; or one that others have asked for, which he wants too.

        Raises:
            NoPlaceError: too many wait.
        """
        own = self._waiting.get(holder, ())
        if turn is not None and (turn.has_come.done() or turn in own):
            return turn
        num_waiting = sum(map(len, self._waiting.values()))
        if len(own) >= self._most_of_one or num_waiting >= self._most:
            raise NoPlaceError(-(-len(self._waiting) // self._at_once))
        turn = turn or Turn()
        self._waiting.setdefault(holder, deque()).append(turn)
        self._deal()
        return turn

    def end(self, turn: Turn) -> None:
        """It is over; or nobody waits for it any more."""
        if turn.has_come.done() and not turn.has_come.cancelled():
            self._running[turn.holder] -= 1
        turn.has_come.cancel()
        self._deal()

    def _deal(self) -> None:
        most_of_one = max(1, self._at_once - 1)
        for holder in list(self._waiting):
            queue = self._waiting[holder]
            while queue and queue[0].has_come.done():  # for another holder, or nobody
                queue.popleft()
            if queue and self._running.total() < self._at_once and self._running[holder] < most_of_one:
                turn = queue.popleft()
                turn.holder = holder
                turn.has_come.set_result(None)
                self._running[holder] += 1
                self._waiting.move_to_end(holder)
            if not queue:
                del self._waiting[holder]
        self._running += Counter()  # without those who have none
