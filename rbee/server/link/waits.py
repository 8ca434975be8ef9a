"""How long a refused request would have to wait for its place.

Owns the estimate of the next ends from how long earlier sequences lasted, the rate at which queued tokens begin, and
the line of those who were told when to come back. Knows neither the limits nor what refuses a request.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

LONGEST = 60  # seconds that anyone is told to wait
_REMEMBERED = 64  # sequences whose length is known
_MOST_AGES = 128  # open sequences that an estimate looks at
_MOST_WAITING = 1024  # clients in line
_GRACE = 2.0  # seconds that a place in line is kept for a client that is late
_STEPS = 8  # of a second, in which ends are estimated
_RATE_MEMORY = 10.0  # seconds of work after which the rate of tokens counts half


class Line:
    """Those who were refused, in order, and when each was told to come back.

    A client that comes back on its connection keeps its place, so that one which asks all the time makes the line no
    longer. One that does not come back loses it. What is free when some are due should be theirs (`due`): if it went to
    whoever comes first, those who wait as long as they are told would wait several times.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, tuple[float, float]] = {}  # when it comes back, and how much it asks for

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, who: Hashable, asked: float, wait_behind: Callable[[float], float], now: float) -> int:
        """Whole seconds, 1 to LONGEST, after which `who` should ask again.

        Args:
            who: a client; None is nobody in particular, and has no place in line.
            asked: places or tokens that it needs.
            wait_behind: seconds until there is room, if so many places or tokens go to others first.
            now: seconds.
        """
        for late in [one for one, (when, _) in self._waiting.items() if when + _GRACE < now]:
            del self._waiting[late]
        ahead = 0.0
        for one, (_, size) in self._waiting.items():
            if one == who:
                break
            ahead += size
        wait = wait_behind(ahead)
        if who is not None:
            if wait <= LONGEST and (who in self._waiting or len(self._waiting) < _MOST_WAITING):
                self._waiting[who] = (now + wait, asked)
            else:
                self._waiting.pop(who, None)
        return min(max(math.ceil(wait), 1), LONGEST)

    def due(self, who: Hashable, now: float) -> float:
        """What those asked for who should be back by now, unless `who` is one; who is too late does not count."""
        due = {one: asked for one, (when, asked) in self._waiting.items() if when <= now <= when + _GRACE}
        return 0.0 if who in due else sum(due.values())

    def leave(self, who: Hashable) -> None:
        """It has been taken, or is gone. Harmless for one that is not in line."""
        self._waiting.pop(who, None)


class ServiceTimes:
    """Since when each place is taken, and how long the last ones were."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}  # by ring
        self._lasted: deque[float] = deque()  # seconds, oldest first
        self._sorted: list[float] = []  # the same
        self._ends: _Ends | None = None  # as the last estimate saw them; None: not up to date

    def __len__(self) -> int:
        return len(self._since)

    def begin(self, ring: int, now: float) -> None:
        self._since[ring] = now
        self._ends = None

    def end(self, ring: int, now: float) -> None:
        lasted = now - self._since.pop(ring)
        if len(self._lasted) == _REMEMBERED:
            del self._sorted[bisect_left(self._sorted, self._lasted.popleft())]
        self._lasted.append(lasted)
        insort(self._sorted, lasted)
        self._ends = None

    @property
    def _period(self) -> float:
        """Seconds from one end to the next in the long run, by Little's law."""
        return sum(self._lasted) / len(self._lasted) / max(len(self._since), 1)

    def until_free(self, places: int, ahead: float, now: float) -> float:
        """Seconds until so many places should be free, if others take `ahead` places first."""
        if not ahead or not self._lasted:
            return self._until_ended(places + ahead, now)
        # The first knows when the open ones end, the second that others begin in their places.
        return min(self._until_ended(places + ahead, now), self._until_ended(places, now) + ahead * self._period)

    def _until_ended(self, places: float, now: float) -> float:
        if self._ends is None or now >= self._ends.seen + 1 / _STEPS:
            self._ends = _Ends(list(self._since.values()), self._sorted, now)
        return self._ends.until(places)


class _Ends:
    """When the open sequences should end, as seen at one time; what one refusal has computed the next ones have."""

    def __init__(self, since: list[float], lasted: list[float], now: float) -> None:
        self.seen = now
        self._lasted = lasted  # how long the last ones were, sorted; must not change
        self._every = -(-len(since) // _MOST_AGES) or 1  # one of so many is looked at
        self._ages = [now - began for began in since[:: self._every]]
        self._outlived = [bisect_right(lasted, age) for age in self._ages]
        self._ended: dict[int, float] = {}  # how many, by step

    def until(self, places: float) -> float:
        """Seconds by which so many should have ended; at most LONGEST.

        An open sequence is taken for one of the last that lasted longer than it has already; if there was none, it ends
        within its present age with a probability of one half.
        """
        # Half a place more or less is even odds.
        steps = range(1, LONGEST * _STEPS)
        return (1 + bisect_left(steps, places - 0.5, key=self._ended_within)) / _STEPS

    def _ended_within(self, step: int) -> float:
        ended = self._ended.get(step)
        if ended is None:
            seconds, pairs = step / _STEPS, zip(self._ages, self._outlived, strict=True)
            ended = self._ended[step] = self._every * sum(self._ends_within(seconds, *pair) for pair in pairs)
        return ended

    def _ends_within(self, seconds: float, age: float, outlived: int) -> float:
        """The probability that a sequence of this age, which has outlived so many, ends within so many seconds."""
        longer = len(self._lasted) - outlived
        if not longer:
            return seconds / (seconds + age) if age > 0 else 1.0
        return (bisect_right(self._lasted, age + seconds, lo=outlived) - outlived) / longer


class TokenRate:
    """How fast the tokens of queued prompts begin: those that left the queue, by the time in which there was one."""

    def __init__(self) -> None:
        self._seconds = self._tokens = 0.0
        self._last: tuple[float, int, int] | None = None  # time, tokens that had ever been queued, those still queued

    def observe(self, now: float, submitted: int, queued: int) -> None:
        """Of `submitted` tokens so far, `queued` are waiting; called often while requests come."""
        if self._last is not None and self._last[2]:
            then, submitted_then, queued_then = self._last
            self._seconds += now - then
            self._tokens += (submitted - queued) - (submitted_then - queued_then)
            if self._seconds > _RATE_MEMORY:
                self._seconds /= 2
                self._tokens /= 2
        self._last = now, submitted, queued

    @property
    def period(self) -> float:
        """Seconds per token; 0 while that is not known."""
        return self._seconds / self._tokens if self._tokens > 0 else 0.0
