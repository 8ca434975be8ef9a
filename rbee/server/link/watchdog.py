"""Whether the engine gets on with its work.

Owns the judgement. Does not know where the signs of life come from, or what follows from their end.
"""

from __future__ import annotations

PERIOD = 0.1  # seconds between two looks, about


class Watchdog:
    """Judges by two words that the engine changes: its heartbeat between steps, its progress for each chunk of work.

    An engine that changed neither for `timeout` seconds is stopped, deadlocked, or in a computation without end. An
    idle one beats ten times a second; a long prompt, a slow machine and a model with many layers delay chunks by far
    less than a timeout of seconds. Time in which nobody looked does not count: a machine that was suspended, or a
    server that was stopped itself, says nothing about the engine.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._signs: tuple[int, int] | None = None
        self._silence = self._looked = 0.0

    def hangs(self, signs: tuple[int, int], now: float) -> bool:
        """Whether the engine hangs, by its two words and the time in seconds."""
        if signs != self._signs:
            self._signs, self._silence = signs, 0.0
        else:
            self._silence += min(now - self._looked, 2 * PERIOD)
        self._looked = now
        return self._silence >= self._timeout
