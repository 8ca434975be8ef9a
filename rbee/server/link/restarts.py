"""When an engine that died is started again.

Owns how often that may be within a window of time, and how long to wait before it. Does not know what is started.
"""

from __future__ import annotations

import random
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SHORTEST_DELAY, _LONGEST_DELAY = 0.25, 10.0  # seconds, before they are spread


class RestartBudget:
    """At most `limit` restarts within `window` seconds: the first one at once, each further one after twice the delay.

    Delays are spread by half of themselves, so that servers whose engines died of one cause do not return in step.

    Args:
        limit: 0 allows none.
        window: seconds after which a restart is forgotten.
        clock: in seconds.
        spread: a random factor.
    """

    def __init__(
        self,
        limit: int,
        window: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = lambda: random.uniform(0.5, 1.5),  # noqa: S311 - no secret
    ) -> None:
        self.limit = limit
        self.window = window
        self._clock = clock
        self._spread = spread
        self._taken: deque[float] = deque()

    def take(self) -> float | None:
        """Seconds to wait before the restart that is due now, or None if there were too many."""
        now = self._clock()
        while self._taken and self._taken[0] <= now - self.window:
            self._taken.popleft()
        before = len(self._taken)
        if before >= self.limit:
            return None
        self._taken.append(now)
        if not before:
            return 0.0
        return min(_SHORTEST_DELAY * 2.0 ** (before - 1), _LONGEST_DELAY) * self._spread()
