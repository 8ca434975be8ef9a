"""How long the phases of steps take.

Owns the moments of the present step and the sums over all. Does not know what happens in a phase.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class PhaseTimes(NamedTuple):
    """Sums over all steps that ran something, in ns."""

    steps: int = 0
    schedule: int = 0
    prepare: int = 0
    forward: int = 0
    sample: int = 0
    publish: int = 0


class StepClock:
    """A stopwatch with a lap for each phase."""

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.times = PhaseTimes()  # of all steps that ended
        self._now_ns = now_ns
        self._moments: list[int] = []

    def begin(self) -> None:
        """Start a step and its first phase."""
        self._moments = [self._now_ns()]

    def lap(self) -> None:
        self._moments.append(self._now_ns())

    def end(self) -> float:
        """End the last phase and the step; return the step's seconds."""
        self.lap()
        phases = (end - start for start, end in itertools.pairwise(self._moments))
        self.times = PhaseTimes(*(sum(pair) for pair in zip(self.times, (1, *phases), strict=True)))
        return (self._moments[-1] - self._moments[0]) / 1e9
