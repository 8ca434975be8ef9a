"""Decides which sequences run in the next step, and for how many tokens each.

Continuous batching by token budget, in the manner of vLLM's V1 scheduler: a sequence has no phase, it catches up with
its own tokens. A prompt longer than what is left of the budget is computed in chunks; that needs no code of its own.

Owns the two queues and all calls to the block manager. Does not know models, tensors, samplers or rings.
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rbee.engine.block_manager import BlockManager
    from rbee.engine.sequence import Sequence


class Scheduled(NamedTuple):
    """`num_tokens` of `sequence`, from its first uncomputed one on, run in the next step."""

    sequence: Sequence
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Whether the sequence has then caught up, so that its last row yields a new token."""
        return self.num_tokens == self.sequence.num_uncomputed_tokens


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival


class Scheduler:
    """Two queues, both always in order of arrival: `running` holds blocks, `waiting` holds none.

    * Running sequences are served first, oldest first; then waiting ones are admitted, oldest first.
    * A waiting sequence is admitted only when blocks for all of its present tokens are free, and gets them at once.
    * When a running sequence needs a block and none is free, another one is preempted: a paused one if there is one,
      else the newest. It keeps its tokens, loses its blocks and computes them again later.
    * A paused sequence (its reader is slow) keeps its blocks as long as nobody else needs them.

    So the oldest sequence that is not paused gets further with every step, and nothing starves.
    """

    def __init__(
        self, block_manager: BlockManager, *, max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int
    ) -> None:
        assert max_num_seqs >= 1
        assert max_num_batched_tokens >= 1
        assert block_manager.num_blocks * block_manager.block_size >= max_model_len, "one sequence alone must fit"
        self.block_manager = block_manager
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. It must have a prompt, and prompt plus one token must fit max_model_len."""
        bisect.insort(self.waiting, sequence, key=_arrival)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended, for whatever reason, and take its blocks back."""
        (self.running if sequence.block_table else self.waiting).remove(sequence)
        self.block_manager.release(sequence)

    def schedule(self) -> list[Scheduled]:
        """What runs in the next step, oldest first; empty when nothing can. Blocks for it are already allocated."""
        scheduled: list[Scheduled] = []
        budget = self.max_num_batched_tokens

        for sequence in list(self.running):
            if budget == 0 or len(scheduled) == self.max_num_seqs:
                break
            if sequence.paused or not sequence.block_table:  # preempted by an older one a moment ago
                continue
            if not self._make_room(sequence):
                break
            budget -= self._take(sequence, budget, scheduled)

        # A waiting sequence may take blocks from paused ones, but only when nothing else could run.
        may_preempt = not scheduled
        for sequence in [waiting for waiting in self.waiting if not waiting.paused]:
            if budget == 0 or len(scheduled) == self.max_num_seqs:
                break
            if may_preempt:
                self._preempt_paused(self.block_manager.num_missing(sequence))
            if not self.block_manager.grow(sequence):
                break
            self.waiting.remove(sequence)
            bisect.insort(self.running, sequence, key=_arrival)
            budget -= self._take(sequence, budget, scheduled)
            may_preempt = False
        return scheduled

    @staticmethod
    def update(scheduled: list[Scheduled]) -> None:
        """Note that what `schedule()` returned has been computed."""
        for sequence, num_tokens in scheduled:
            sequence.num_computed_tokens += num_tokens

    @staticmethod
    def _take(sequence: Sequence, budget: int, scheduled: list[Scheduled]) -> int:
        num_tokens = min(sequence.num_uncomputed_tokens, budget)
        scheduled.append(Scheduled(sequence, num_tokens))
        return num_tokens

    def _make_room(self, sequence: Sequence) -> bool:
        """Get the running `sequence` its missing blocks, from others if need be. False: it was preempted itself."""
        while not self.block_manager.grow(sequence):
            victim = next((paused for paused in reversed(self.running) if paused.paused), self.running[-1])
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt_paused(self, num_blocks: int) -> None:
        """Preempt paused sequences, newest first, until `num_blocks` are free or none is left."""
        for paused in [sequence for sequence in reversed(self.running) if sequence.paused]:
            if self.block_manager.num_free >= num_blocks:
                return
            self._preempt(paused)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.block_manager.release(sequence)
        bisect.insort(self.waiting, sequence, key=_arrival)
        self.num_preemptions += 1
