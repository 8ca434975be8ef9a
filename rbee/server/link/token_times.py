"""First tokens and gaps of the streams that Python writes, counted as the native delivery counts its own.

Owns the clock of one sequence. Does not know what was written.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rbee.transport import Consumer


class TokenTimes:
    """The times of one sequence, whose request was received at `received_ns` (CLOCK_MONOTONIC)."""

    __slots__ = ("_consumer", "_received_ns", "_written_ns")

    def __init__(self, consumer: Consumer, received_ns: int) -> None:
        self._consumer = consumer
        self._received_ns = received_ns
        self._written_ns = 0  # 0 before the first content

    def written(self, num_tokens: int, *, content: bool) -> None:
        """Count one write of `num_tokens` tokens, at least one; `content`: they showed anything."""
        now = time.monotonic_ns()
        if self._written_ns:
            self._consumer.note_gap(now - self._written_ns)
        elif not content:
            return
        else:
            self._consumer.note_first_token(now - self._received_ns)
        for _ in range(num_tokens - 1):
            self._consumer.note_gap(0)
        self._written_ns = now
