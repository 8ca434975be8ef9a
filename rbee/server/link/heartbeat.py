"""The server's pulse: its heartbeat in the arena, how late its event loop is, how long its garbage collector pauses.

Owns one timer and the collector's callback. The loop's timers tick in milliseconds, so a lag below one means nothing.
What it writes is for observers (`rbee top`, benchmarks); the one thing it does is to look for a lost wakeup, which has
never been seen and is counted if it happens. Knows no requests.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rbee.transport import Consumer

_log = logging.getLogger(__name__)

_PERIOD = 0.1  # seconds


class Pulse:
    """Beats from `start` to `stop`."""

    def __init__(self, consumer: Consumer, state: Callable[[], int], on_stale: Callable[[], None]) -> None:
        """Nothing beats yet.

        Args:
            consumer: where it is written.
            state: the number that observers see as the server's state.
            on_stale: called when something was published and nobody rang.
        """
        self._consumer = consumer
        self._state = state
        self._on_stale = on_stale
        self._loop = asyncio.get_running_loop()
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._collection_began_ns = 0

    def start(self) -> None:
        """Beat at once, and from now on."""
        gc.callbacks.append(self._on_collection)
        self._due = time.monotonic()
        self._beat()

    def stop(self) -> None:
        """The consumer is not touched again."""
        gc.callbacks.remove(self._on_collection)
        if self._timer is not None:
            self._timer.cancel()

    def _beat(self) -> None:
        now = time.monotonic()
        self._consumer.note_loop_lag(max(0, round((now - self._due) * 1e9)))
        self._consumer.beat(self._state())
        if self._consumer.find_stale():
            _log.error("tokens were published without waking the server; they are delivered now")
            self._on_stale()
        self._due = now + _PERIOD
        self._timer = self._loop.call_later(_PERIOD, self._beat)

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:  # noqa: ARG002 - the collector's signature
        if phase == "start":
            self._collection_began_ns = time.monotonic_ns()
        else:
            self._consumer.note_collection(time.monotonic_ns() - self._collection_began_ns)
