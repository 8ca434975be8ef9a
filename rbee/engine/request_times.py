"""How long sequences wait, compute their prompt and generate, and how large they are.

Owns the moments of each live sequence and what is counted at them in the arena's histograms. Costs a few calls per
sequence and nothing per token. Does not know why a sequence is admitted or ends.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rbee.engine.scheduling.sequence import Sequence
    from rbee.transport import Producer


@dataclass(slots=True, eq=False)
class Moments:
    """When what happened to a sequence, CLOCK_MONOTONIC in ns; None: not yet."""

    sequence: Sequence
    received_ns: int  # the server had its request
    admitted_ns: int | None = None  # it ran for the first time
    first_token_ns: int | None = None


class RequestTimes:
    """Counts each sequence once at its admission, at its first token and at its end; `now_ns` is CLOCK_MONOTONIC.

    One that ends while it waits counts nowhere. One that was preempted is admitted only the first time.
    """

    def __init__(self, producer: Producer, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._producer = producer
        self._now_ns = now_ns
        self._prefilling: list[Moments] = []  # of those that were admitted and have no token

    def on_admitted(self, admitted: list[Moments]) -> None:
        """They run for the first time."""
        now = self._now_ns()
        for moments in admitted:
            moments.admitted_ns = now
            self._producer.note_admitted(max(0, now - moments.received_ns))
        self._prefilling += admitted

    def on_tokens(self) -> None:
        """A step's tokens were appended to their sequences."""
        for moments in [moments for moments in self._prefilling if moments.sequence.num_output_tokens]:
            self._end_prefill(moments)

    def on_end(self, moments: Moments) -> None:
        """It has its finish reason, behind its last token."""
        if moments.admitted_ns is None:
            return
        if moments.first_token_ns is None:
            self._end_prefill(moments)
        now = self._now_ns()
        self._producer.note_ended(
            prompt_tokens=moments.sequence.num_prompt_tokens,
            generation_tokens=moments.sequence.num_output_tokens,
            inference_ns=now - moments.admitted_ns,
            decode_ns=None if moments.first_token_ns is None else now - moments.first_token_ns,
        )

    def _end_prefill(self, moments: Moments) -> None:
        """It has its first token, or ends without one."""
        self._prefilling.remove(moments)
        if moments.sequence.num_output_tokens:
            assert moments.admitted_ns is not None
            moments.first_token_ns = self._now_ns()
            self._producer.note_first_token(moments.first_token_ns - moments.admitted_ns)
