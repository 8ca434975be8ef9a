"""The server's heartbeat in the arena, with the lag of its event loop and the pauses of its garbage collector.

Owns one timer, which ticks in milliseconds (a smaller lag means nothing), and the collector's callback. Knows no
requests.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rbee.transport import Consumer, ServerState

_log = logging.getLogger(__name__)

PERIOD = 0.1  # seconds


class Heartbeat:
    """Beats every 0.1 s, with the server's state. `on_stale` is called for tokens that came without a wakeup.

    `on_beat` is called then too: a timer of its own would wake the process as often again.
    """

    def __init__(
        self,
        consumer: Consumer,
        state: Callable[[], ServerState],
        on_stale: Callable[[], None],
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._consumer = consumer
        self._state = state
        self._on_stale = on_stale
        self._on_beat = on_beat
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._collection_began_ns = 0

    def start(self) -> None:
        gc.callbacks.append(self._on_collection)
        self._due = time.monotonic()
        self._beat()

    def stop(self) -> None:
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
        self._due = now + PERIOD
        self._timer = asyncio.get_running_loop().call_later(PERIOD, self._beat)
        self._on_beat()

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:  # noqa: ARG002 - the collector's signature
        if phase == "start":
            self._collection_began_ns = time.monotonic_ns()
        else:
            self._consumer.note_collection(time.monotonic_ns() - self._collection_began_ns)
