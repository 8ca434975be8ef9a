"""Sequences whose engine died before their first token, until the next engine has them.

Owns their order, their deadlines and how often one may be submitted. Does not know when there is an engine, or how one
runs them.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from rbee.messages import FinishReason
from rbee.server.errors import deadline_passed

if TYPE_CHECKING:
    from collections.abc import Callable

    from rbee.server.errors import Refusal
    from rbee.server.link.sequences import DirectTarget, Submitted
    from rbee.server.link.sinks import TokenSink

MOST_SUBMISSIONS = 2  # of a sequence: one that kills engines kills two


class UnbegunSequences:
    """Sequences without an engine; the `SequenceOwner` of their handles meanwhile.

    Args:
        on_end: called for each that ends here, as `EngineClient` does.
        now_ns: CLOCK_MONOTONIC.
    """

    def __init__(self, on_end: Callable[[int, float], None], *, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._on_end = on_end
        self._now_ns = now_ns
        self._sequences: dict[int, tuple[Submitted, asyncio.TimerHandle | None]] = {}  # by number, in order
        self._last = 0

    def __len__(self) -> int:
        return len(self._sequences)

    def keep(self, sequence: Submitted) -> bool:
        """Take a sequence over, behind those that are here; False if it was submitted too often."""
        if sequence.times == MOST_SUBMISSIONS:
            return False
        self._last += 1
        number, timer = self._last, None
        if deadline_ns := sequence.record.deadline_ns:
            left = max(0, deadline_ns - self._now_ns()) / 1e9
            timer = asyncio.get_running_loop().call_later(left, self._end_overdue, number)
        self._sequences[number] = (sequence, timer)
        sequence.handle.move(self, number, 1)
        return True

    def submit_all(self, submit: Callable[[Submitted], None]) -> None:
        """Hand them all to the next engine, in order."""
        for number in list(self._sequences):
            sequence = self._take(number)
            sequence.times += 1
            submit(sequence)

    def fail_all(self, error: Refusal) -> None:
        """There will be no other engine for them."""
        for number in list(self._sequences):
            self._fail(number, FinishReason.ERROR, error)

    def cancel(self, number: int, generation: int, reason: int) -> None:  # noqa: ARG002 - of rings
        if number in self._sequences:
            self._end(number, reason)

    def pause(self, number: int, generation: int) -> None:
        """Its handle remembers it."""

    def resume(self, number: int, generation: int) -> None: ...

    def orphan(self, number: int, generation: int) -> None:
        """Its handle remembers it."""

    def adopt(self, number: int, generation: int) -> None: ...

    def redirect(self, number: int, generation: int, sink: TokenSink | DirectTarget) -> None:  # noqa: ARG002 - of rings
        if number in self._sequences:
            self._sequences[number][0].target = sink

    def _end_overdue(self, number: int) -> None:
        self._fail(number, FinishReason.DEADLINE, deadline_passed())

    def _fail(self, number: int, reason: int, error: Refusal) -> None:
        if number in self._sequences:  # else an earlier one has cancelled it
            self._end(number, reason).sink.fail(error)

    def _end(self, number: int, reason: int) -> Submitted:
        sequence = self._take(number)
        self._on_end(reason, (self._now_ns() - sequence.record.received_ns) / 1e9)
        if sequence.entry is not None:
            account, index = sequence.entry
            account.end(index, reason)
        return sequence

    def _take(self, number: int) -> Submitted:
        sequence, timer = self._sequences.pop(number)
        if timer is not None:
            timer.cancel()
        return sequence
