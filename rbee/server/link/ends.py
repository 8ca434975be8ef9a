"""How sequences have ended and how long their requests took, over all epochs of the engine.

Owns these counts, which cost a call per sequence. Does not know who counts or who shows them.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter

# Seconds, upper bounds of the histogram; one more bucket has no end.
BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)


class SequenceEnds:
    """Ends by reason, and a histogram of the seconds from the request's receipt to the end."""

    def __init__(self) -> None:
        self.by_reason: Counter[int] = Counter()  # by FinishReason
        self.seconds = 0.0  # the sum
        self._buckets = [0] * (len(BOUNDS) + 1)

    def count(self, reason: int, seconds: float) -> None:
        self.by_reason[reason] += 1
        self.seconds += seconds
        self._buckets[bisect_left(BOUNDS, seconds)] += 1

    def up_to_bounds(self) -> list[int]:
        """How many took at most each of BOUNDS, and how many there are."""
        return list(itertools.accumulate(self._buckets))
