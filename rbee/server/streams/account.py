"""What one generation has cost: its tokens and their times, in numbers.

Owns the arithmetic. The native drain has counted; nothing here runs per token. Does not know who asks.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rbee.messages import FinishReason
from rbee.server.reports.finished import Figures
from rbee.transport import TokenGaps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rbee.server.streams.generation import Generation


@dataclass(slots=True)
class _Sequence:
    """One choice. Times are CLOCK_MONOTONIC in ns; 0: not yet."""

    started_ns: int = 0
    first_ns: int = 0
    last_ns: int = 0
    num_committed: int = 0  # output tokens that the drain has found
    num_shown: int | None = None  # of these, what counts for the client; None: all
    cached_tokens: int | None = None
    reason: int = 0


class OpenSequences:
    """How many sequences of a request are open, and who waits for the end of the last one."""

    def __init__(self, number: int = 0) -> None:
        self._number = number
        self._on_ended: Callable[[], None] | None = None

    def begin(self) -> None:
        """There is one more."""
        self._number += 1

    def end(self) -> None:
        """One has ended."""
        self._number -= 1
        if not self._number and self._on_ended is not None:
            # Not now: the sink that is ending may have an error to note yet.
            asyncio.get_running_loop().call_soon(self._on_ended)
            self._on_ended = None

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call it once all have ended: now, or later from the event loop."""
        if self._number:
            self._on_ended = callback
        else:
            callback()


class GenerationAccount:
    """The `rbee.server.link.sinks.Account` of one generation. With `generation.timings` it keeps all gaps."""

    def __init__(self, generation: Generation, answer_id: str) -> None:
        self.gaps = TokenGaps() if generation.timings else None
        self.refusal = ""  # the code of the error that ended the stream
        self._generation = generation
        self._answer_id = answer_id
        self._sequences = [_Sequence() for _ in range(generation.num_sequences)]
        self._open = OpenSequences(generation.num_sequences)
        self.when_ended = self._open.when_ended

    def take(self, index: int, times: tuple[int, int, int, int], cached_tokens: int | None) -> None:
        sequence = self._sequences[index]
        sequence.started_ns, sequence.first_ns, sequence.last_ns, sequence.num_committed = times
        if cached_tokens is not None:
            sequence.cached_tokens = cached_tokens

    def show(self, index: int, num_tokens: int, cached_tokens: int | None) -> None:
        """A choice ends with so many tokens as its client counts them."""
        sequence = self._sequences[index]
        sequence.num_shown = num_tokens
        if cached_tokens is not None:
            sequence.cached_tokens = cached_tokens

    def end(self, index: int, reason: int) -> None:
        self._sequences[index].reason = reason
        self._open.end()

    def figures(self) -> Figures:
        """The account so far."""
        sequences, generation = self._sequences, self._generation
        timed = [sequence for sequence in sequences if sequence.num_committed > 1]
        num_gaps = sum(sequence.num_committed - 1 for sequence in timed)
        gaps_ns = sum(sequence.last_ns - sequence.first_ns for sequence in timed)
        reasons = dict.fromkeys(FinishReason(sequence.reason).name.lower() for sequence in sequences if sequence.reason)
        return Figures(
            answer_id=self._answer_id,
            prompt_tokens=generation.num_prompt_tokens,
            completion_tokens=sum(
                sequence.num_committed if sequence.num_shown is None else sequence.num_shown for sequence in sequences
            ),
            cached_tokens=self._cached_tokens(),
            received_ns=generation.received_ns,
            started_ns=_first(sequence.started_ns for sequence in sequences),
            first_ns=_first(sequence.first_ns for sequence in sequences),
            last_ns=max(sequence.last_ns for sequence in sequences),
            gap_ns=gaps_ns / num_gaps if num_gaps else None,
            finish=",".join(reasons),
            refusal=self.refusal,
            sampling=generation.sampling,
        )

    def _cached_tokens(self) -> int | None:
        """Of the prompts, each as the first of its choices found it; None if no choice knows."""
        n = self._generation.n
        found: dict[int, int] = {}
        for index, sequence in enumerate(self._sequences):
            if sequence.cached_tokens is not None:
                found.setdefault(index // n, sequence.cached_tokens)
        return sum(found.values()) if found else None

    def timings(self) -> dict[str, float] | None:
        """The generation in ms, tokens and tokens per second, if its request asks for that.

        Members that llama.cpp has are spelled as there. One that is not known is left out.
        """
        if self.gaps is None:
            return None
        figures = self.figures()
        cached = figures.cached_tokens or 0
        decode_ns = figures.decode_ns
        shown: dict[str, float | None] = {
            "cache_n": figures.cached_tokens,
            "prompt_n": figures.prompt_tokens - cached,
            "queue_ms": _ms(figures.queue_ns),
            "prompt_ms": _ms(figures.prefill_ns),
            "ttft_ms": _ms(figures.ttft_ns),
            "predicted_n": figures.completion_tokens,
            "predicted_ms": _ms(decode_ns),
            "predicted_per_second": round(1e9 * len(self.gaps) / decode_ns, 3) if decode_ns else None,
            "itl_p50_ms": _ms(self.gaps.quantile(0.5) if len(self.gaps) else None),
            "itl_p99_ms": _ms(self.gaps.quantile(0.99) if len(self.gaps) else None),
        }
        return {name: value for name, value in shown.items() if value is not None}


def _first(times: Iterable[int]) -> int:
    return min((time for time in times if time), default=0)


def _ms(ns: int | None) -> float | None:
    return None if ns is None else round(ns / 1e6, 3)
