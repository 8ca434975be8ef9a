"""The scheduler and its blocks, against properties that must hold whatever is asked of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.engine.scheduling.scheduling_parts import (
    NO_LIMIT,
    KvCache,
    everyone,
    finish_step,
    new_scheduler,
    new_sequence,
)

if TYPE_CHECKING:
    from rbee.engine.scheduling.sequence import Sequence


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of arrivals, steps, aborts, invalid_kv ends, pauses and resumes; prompts often begin alike."""

    @initialize(
        num_blocks=st.integers(2, 12),
        block_size=st.integers(1, 5),
        max_num_seqs=st.integers(1, 5),
        budget=st.integers(1, 20),
        prefix_caching=st.sampled_from([True, True, True, False]),
        window=st.sampled_from([0, 0, 1, 2, 5, 9, 30]),
    )
    def start(
        self, num_blocks: int, block_size: int, max_num_seqs: int, budget: int, window: int, *, prefix_caching: bool
    ) -> None:
        """Begin with an empty scheduler of some shape."""
        self.scheduler = new_scheduler(
            num_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            budget=budget,
            prefix_caching=prefix_caching,
            window=window,
        )
        self.manager = self.scheduler.block_manager
        self.kv_cache = KvCache(self.manager)
        self.max_model_len = num_blocks * block_size
        self.live: dict[int, Sequence] = {}
        self.arrivals = 0

    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        """A request that fits max_model_len arrives."""
        num_prompt_tokens = data.draw(st.integers(1, self.max_model_len - 1))
        num_shared = data.draw(st.integers(0, num_prompt_tokens))
        sequence = new_sequence(
            self.arrivals,
            [5] * num_shared + [6 + self.arrivals] * (num_prompt_tokens - num_shared),
            max_tokens=data.draw(st.integers(1, self.max_model_len - num_prompt_tokens)),
            salt=data.draw(st.sampled_from(["", "", "other"])),
            priority=data.draw(st.sampled_from([0, 0, 0, -1, 1])),
            num_prompt_logprobs=data.draw(st.sampled_from([None, None, None, 1])),
        )
        sequence.max_chunk = data.draw(st.sampled_from([0, 0, 1, 3]))
        self.arrivals += 1
        self.live[sequence.ring] = sequence
        self.scheduler.add(sequence)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), invalid_kv=st.booleans())
    def end(self, data: st.DataObject, *, invalid_kv: bool) -> None:
        """A client goes away, or the logits are no numbers; then nothing of it is findable."""
        sequence = self.live.pop(data.draw(st.sampled_from(sorted(self.live))))
        blocks = list(sequence.block_table)[sequence.num_unseen_blocks :]
        unseen = sequence.block_hashes[: sequence.num_unseen_blocks]
        self.scheduler.remove(sequence, invalid_kv=invalid_kv)
        assert not sequence.block_table
        if invalid_kv:
            assert not set(blocks) & set(self.manager.findable.values())
            assert not set(unseen) & set(self.manager.findable)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def pause_or_resume(self, data: st.DataObject) -> None:
        """A reader stops, or reads again."""
        sequence = self.live[data.draw(st.sampled_from(sorted(self.live)))]
        sequence.paused = not sequence.paused

    @rule(max_prompt_tokens=st.integers(0, 20))
    def step(self, max_prompt_tokens: int) -> None:
        """A step obeys all limits, skips paused sequences, and serves somebody if anybody can be served."""
        scheduler = self.scheduler
        preempted_before = {ring: sequence.num_preemptions for ring, sequence in self.live.items()}
        scheduled = scheduler.schedule(max_prompt_tokens)
        sequences = [entry.sequence for entry in scheduled]
        assert len(set(map(id, sequences))) == len(sequences) <= scheduler.max_num_seqs
        assert sequences == sorted(sequences, key=lambda sequence: sequence.rank)
        assert sum(entry.num_tokens for entry in scheduled) <= scheduler.max_num_batched_tokens
        for sequence, num_tokens in scheduled:
            assert not sequence.paused
            assert 1 <= num_tokens <= min(sequence.num_uncomputed_tokens, sequence.max_chunk or NO_LIMIT)
            assert len(sequence.block_table) * self.manager.block_size >= sequence.num_tokens
            assert sequence.num_cached_tokens < sequence.num_prompt_tokens

        ready = [sequence for sequence in scheduler.running if not sequence.paused]
        if ready:
            assert sequences[0] is ready[0], "the first in rank gets further"
            assert ready[0].num_preemptions == preempted_before[ready[0].ring]
        assert scheduled or all(sequence.paused for sequence in self.live.values()), "somebody could run"
        decodes = [sequence for sequence in ready if sequence.num_uncomputed_tokens == 1]
        assert set(map(id, decodes)) <= set(map(id, sequences)) or len(ready) > scheduler.max_num_seqs
        shares = [entry for entry in scheduled if entry.sequence.num_uncomputed_tokens > 1]
        if shares:
            num_prompt_tokens = sum(entry.num_tokens for entry in shares)
            assert num_prompt_tokens <= max(1, max_prompt_tokens) or len(shares) == len(scheduled)
            first, share = shares[0]
            assert 2 * share >= num_prompt_tokens or share == min(first.num_uncomputed_tokens, first.max_chunk or share)

        self.kv_cache.compute(scheduled)
        for sequence in finish_step(scheduler, scheduled):
            del self.live[sequence.ring]

    @precondition(lambda self: hasattr(self, "scheduler"))
    @invariant()
    def blocks_are_right(self) -> None:
        """Each block is free or held by whom it should, and what counts as computed or findable is there."""
        self.kv_cache.check(self.scheduler.running)
        assert self.manager.prefix_caching or not self.manager.findable

    @precondition(lambda self: hasattr(self, "scheduler"))
    @invariant()
    def queues_are_in_order(self) -> None:
        """Each live sequence is in exactly one queue, both are in order of rank, and only running ones hold KV."""
        for queue in (self.scheduler.running, self.scheduler.waiting):
            ranks = [sequence.rank for sequence in queue]
            assert ranks == sorted(ranks)
        assert sorted(sequence.ring for sequence in everyone(self.scheduler)) == sorted(self.live)
        assert all(sequence.block_table for sequence in self.scheduler.running)
        assert not any(sequence.block_table or sequence.num_computed_tokens for sequence in self.scheduler.waiting)

    def teardown(self) -> None:
        """Once every reader reads, every request ends, with all of its tokens, after a bounded number of steps."""
        if not hasattr(self, "scheduler"):
            return
        work = 0
        for sequence in self.live.values():
            sequence.paused = False
            work += sequence.num_prompt_tokens + sequence.sampling.max_tokens
        # While one waits first in rank those that run end one after the other; then it runs, and gets a token a step.
        for _ in range(len(self.live) * work):
            if not self.live:
                break
            self.step(max_prompt_tokens=1)
            self.blocks_are_right()
        assert not self.live
        assert self.manager.num_free == self.manager.num_blocks
        assert not self.manager.coming


TestSchedulerMachine = SchedulerMachine.TestCase


TestSchedulerMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
