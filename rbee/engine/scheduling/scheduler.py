"""Decides which sequences run in the next step, and for how many tokens each.

Owns the two queues and all calls to the block manager. Does not know models, tensors, samplers, rings or time.

Continuous batching by token budget, as in vLLM's V1 scheduler: a sequence has no phase, it catches up with its own
tokens. A prompt longer than its share is computed in chunks.
"""

from __future__ import annotations

import bisect
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

    from rbee.engine.scheduling.block_manager import BlockManager, Prefix
    from rbee.engine.scheduling.sequence import Sequence


class Scheduled(NamedTuple):
    """`num_tokens` of `sequence`, from its first uncomputed one on, run in the next step."""

    sequence: Sequence
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Whether the sequence catches up, so that its last row yields a new token, or its vector is complete."""
        return self.num_tokens == self.sequence.num_uncomputed_tokens


_rank = attrgetter("rank")
_uncomputed = attrgetter("num_uncomputed_tokens")


def _most(sequence: Sequence) -> int:
    """The most tokens that one step can compute of it."""
    return min(sequence.num_uncomputed_tokens, sequence.max_chunk or sequence.num_uncomputed_tokens)


class Scheduler:
    """Two queues, both always in order of rank: `running` holds blocks, `waiting` holds none.

    Which sequences:
    * Running sequences come first, then waiting ones are admitted, each in order of rank.
    * A waiting sequence is admitted when blocks for all of its present tokens are free, and gets them at once.
    * A running sequence that needs a block when none is free preempts the last paused one, else the last in rank. The
      victim keeps its tokens and rank and loses its blocks; it may find them again in the cache.
    * A paused sequence (its reader is slow) keeps its blocks as long as no other needs them.
    * A waiting sequence is held back while one that runs, unpaused and earlier in rank, computes its next block: many
      requests with one prompt compute it once. Those behind it may be admitted, but not with its blocks or its seat.

    For how many tokens:
    * A sequence with one token to go (it decodes) gets it, in every step.
    * The rest of the budget, bounded by `max_prompt_tokens` if any sequence decodes, goes to those further behind: half
      to the first in rank, half to those with the fewest tokens to go, so that a short prompt passes a long one.

    Nothing starves. The first in rank of the unpaused running ones advances in each step and is never preempted. The
    first of the unpaused waiting ones can be held back only by running ones earlier in rank, which are finitely many
    because ranks follow the clock; after them nothing overtakes it, and the blocks that become free are its.
    """

    def __init__(
        self, block_manager: BlockManager, *, max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int
    ) -> None:
        assert max_num_seqs >= 1
        assert max_num_batched_tokens >= 1
        assert block_manager.num_blocks * block_manager.block_size >= max_model_len, "one sequence alone must fit"
        self.block_manager = block_manager
        self.max_num_batched_tokens = max_num_batched_tokens
        # With no more sequences than tokens in a step, there is a token for each, whatever the others take.
        self.max_num_seqs = min(max_num_seqs, max_num_batched_tokens)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.admitted: list[Sequence] = []  # by the last `schedule()`, also those that had been preempted
        self.num_preemptions = 0

    @property
    def num_decodes(self) -> int:
        """Sequences that will decode in the next step, estimated before it is scheduled."""
        ready = sum(not sequence.paused and sequence.num_uncomputed_tokens == 1 for sequence in self.running)
        return min(ready, self.max_num_seqs)

    @property
    def num_prompts(self) -> int:
        """Sequences more than one token behind that have, or could have, a seat in the next step.

        Those that give a vector do not count: nobody waits for their first token, and hundreds of them at a time would
        make the steps of streams as long as they like.
        """
        unpaused = [sequence for sequence in self.running if not sequence.paused]
        behind = sum(sequence.num_uncomputed_tokens > 1 and sequence.pooling is None for sequence in unpaused)
        waiting = (sequence for sequence in self.waiting if not sequence.paused)
        seated = islice(waiting, max(0, self.max_num_seqs - len(unpaused)))
        return behind + sum(sequence.pooling is None for sequence in seated)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence with a non-empty prompt; prompt plus one token must fit max_model_len."""
        bisect.insort(self.waiting, sequence, key=_rank)

    def remove(self, sequence: Sequence, *, invalid_kv: bool = False) -> None:
        """Drop a sequence that ended and release its blocks; `invalid_kv`: see `BlockManager.release`."""
        (self.running if sequence.block_table else self.waiting).remove(sequence)
        self.block_manager.release(sequence, invalid_kv=invalid_kv)

    def schedule(self, max_prompt_tokens: int) -> list[Scheduled]:
        """Choose the next step, in order of rank, with its blocks allocated; empty when nothing can run.

        While any sequence decodes, those more than one token behind get max(1, max_prompt_tokens) together.
        """
        self.admitted = []
        chosen = self._continue_running()
        if len(chosen) < self.max_num_seqs and self.waiting:
            self._admit_waiting(chosen)
        return self._share_tokens(chosen, max_prompt_tokens)

    def update(self, scheduled: list[Scheduled], unsampled: Collection[Sequence] = ()) -> None:
        """Count what `schedule()` returned as computed, except sequences removed since then.

        Those that were to sample, and did not, compute their last token again.
        """
        for sequence, num_tokens in scheduled:
            if sequence.block_table:
                self.block_manager.advance(sequence, num_tokens - (sequence in unsampled))

    def _continue_running(self) -> list[Sequence]:
        chosen: list[Sequence] = []
        for sequence in list(self.running):
            if len(chosen) == self.max_num_seqs:
                break
            if sequence.paused or not sequence.block_table:  # preempted by an earlier one a moment ago
                continue
            if not self._make_room(sequence):
                break
            chosen.append(sequence)
        return chosen

    def _admit_waiting(self, chosen: list[Sequence]) -> None:
        """Fill up `chosen` with waiting sequences, in order of rank."""
        num_held_back = num_reserved = 0
        for sequence in list(self.waiting):
            if len(chosen) + num_held_back == self.max_num_seqs:
                break
            if sequence.paused:
                continue
            prefix = self.block_manager.find(sequence)
            if prefix.producer is not None and not prefix.producer.paused and prefix.producer.rank < sequence.rank:
                num_held_back += 1
                num_reserved += self.block_manager.num_needed(sequence, prefix) - prefix.num_coming
                continue
            if not self._admit(sequence, prefix, num_reserved, may_preempt=not chosen):
                break
            chosen.append(sequence)
        chosen.sort(key=_rank)

    def _admit(self, sequence: Sequence, prefix: Prefix, num_reserved: int, *, may_preempt: bool) -> bool:
        """Move a waiting sequence to `running` if there are blocks, with `may_preempt` those of paused ones."""
        while not self.block_manager.admit(sequence, prefix, keep_free=num_reserved):
            victim = self._last_paused() if may_preempt else None
            if victim is None:
                return False
            self._preempt(victim)
        self.waiting.remove(sequence)
        bisect.insort(self.running, sequence, key=_rank)
        self.admitted.append(sequence)
        return True

    def _share_tokens(self, chosen: list[Sequence], max_prompt_tokens: int) -> list[Scheduled]:
        behind = [sequence for sequence in chosen if sequence.num_uncomputed_tokens > 1]
        if not behind:
            return [Scheduled(sequence, 1) for sequence in chosen]
        num_decodes = len(chosen) - len(behind)
        budget = self.max_num_batched_tokens - num_decodes
        if num_decodes:
            budget = min(budget, max(1, max_prompt_tokens))

        first = behind[0]
        shares = {first: min(_most(first), (budget + 1) // 2)}
        budget -= shares[first]
        for sequence in sorted(behind, key=_uncomputed):
            if budget == 0:
                break
            has = shares.get(sequence, 0)
            shares[sequence] = min(_most(sequence), has + budget)
            budget -= shares[sequence] - has
        return [
            Scheduled(sequence, shares.get(sequence, 1))
            for sequence in chosen
            if sequence in shares or sequence.num_uncomputed_tokens == 1
        ]

    def _make_room(self, sequence: Sequence) -> bool:
        """Allocate the missing blocks of `sequence`, preempting others if needed. False: it was preempted itself."""
        while not self.block_manager.grow(sequence):
            victim = self._last_paused() or self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _last_paused(self) -> Sequence | None:
        return next((sequence for sequence in reversed(self.running) if sequence.paused), None)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.block_manager.release(sequence)
        bisect.insort(self.waiting, sequence, key=_rank)
        sequence.num_preemptions += 1
        self.num_preemptions += 1
