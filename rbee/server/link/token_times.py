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

    __slots__ = ("_note_first_token", "_note_gap", "_received_ns", "_written_ns")

    def __init__(self, consumer: Consumer, received_ns: int) -> None:
        self._note_first_token = consumer.note_first_token
        self._note_gap = consumer.note_gap
        self._received_ns = received_ns
        self._written_ns = 0  # 0 before the first content

    def written(self, num_tokens: int, content: bool) -> None:  # noqa: FBT001 - once per token
        """Count one write of `num_tokens` tokens, at least one; `content`: they showed anything."""
        now = time.monotonic_ns()
        if self._written_ns:
            self._note_gap(now - self._written_ns)
        elif not content:
            return
        else:
            self._note_first_token(now - self._received_ns)
        self._written_ns = now
        while num_tokens > 1:
            self._note_gap(0)
            num_tokens -= 1
