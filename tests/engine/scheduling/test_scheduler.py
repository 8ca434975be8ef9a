"""The scheduler and its blocks, against properties that must hold whatever is asked of them."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rbee.engine.scheduling.scheduler import Scheduled
from tests.engine.scheduling.scheduling_parts import (
    NO_LIMIT,
    KvCache,
    everyone,
    finish_step,
    new_scheduler,
    new_sequence,
    run_all,
    run_step,
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
    )
    def start(self, num_blocks: int, block_size: int, max_num_seqs: int, budget: int, *, prefix_caching: bool) -> None:
        """Begin with an empty scheduler of some shape."""
        self.scheduler = new_scheduler(
            num_blocks, block_size=block_size, max_num_seqs=max_num_seqs, budget=budget, prefix_caching=prefix_caching
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
        blocks = list(sequence.block_table)
        self.scheduler.remove(sequence, invalid_kv=invalid_kv)
        assert not sequence.block_table
        if invalid_kv:
            assert not set(blocks) & set(self.manager._findable.values())

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
        assert self.manager.prefix_caching or not self.manager._findable

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
        assert not self.manager._coming


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# ---- who runs ----------------------------------------------------------------------------------------------------


def test_long_prompt_is_computed_in_chunks_beside_a_decoding_sequence():
    """A running sequence gets its token in every step while a long prompt takes what is left of the budget."""
    scheduler = new_scheduler(32, budget=16)
    scheduler.add(new_sequence(0, 3, max_tokens=50))
    run_step(scheduler)
    long = new_sequence(1, 40)
    scheduler.add(long)
    assert [run_step(scheduler) for _ in range(3)] == [{0: 1, 1: 15}, {0: 1, 1: 15}, {0: 1, 1: 10}]
    assert long.num_output_tokens == 1


def test_last_in_rank_is_preempted_and_keeps_its_tokens_and_rank():
    """When blocks run out the last running sequence goes back to waiting with its output, and is computed again."""
    scheduler = new_scheduler(4, block_size=4)
    urgent, other = new_sequence(1, 8, max_tokens=8, priority=-1), new_sequence(0, 6, max_tokens=8)
    scheduler.add(other)
    scheduler.add(urgent)
    run_step(scheduler)
    assert run_step(scheduler) == {1: 1}
    assert scheduler.waiting == [other]
    assert (other.num_computed_tokens, other.num_output_tokens, len(other.block_table)) == (0, 1, 0)
    assert (other.rank, scheduler.num_preemptions) == ((0, 0), 1)


def test_preempted_sequence_finds_its_own_blocks():
    """What nobody took meanwhile need not be computed again, and does not count as cached for the client."""
    scheduler = new_scheduler(5, block_size=4, budget=32)
    old, new = new_sequence(0, 8, max_tokens=2), new_sequence(1, 11, max_tokens=8)
    scheduler.add(old)
    scheduler.add(new)
    assert run_step(scheduler) == {0: 8, 1: 11}
    assert run_step(scheduler) == {0: 1}, "the other gave its blocks for this"
    assert new.num_preemptions == 1
    assert run_step(scheduler) == {1: 4}, "its last, partial block only"
    assert new.num_cached_tokens == 0


def test_waiting_sequences_are_admitted_in_order_of_rank():
    """A short request does not overtake a long one that waits for blocks; an urgent one overtakes both."""
    scheduler = new_scheduler(4, block_size=4)
    long, short, urgent = new_sequence(1, 12), new_sequence(2, 1), new_sequence(3, 1, priority=-1)
    scheduler.add(new_sequence(0, 8, max_tokens=3))
    run_step(scheduler)
    scheduler.add(short)
    scheduler.add(long)
    assert run_step(scheduler) == {0: 1}
    assert scheduler.waiting == [long, short]
    scheduler.add(urgent)
    assert run_step(scheduler) == {3: 1, 0: 1}
    assert scheduler.waiting == [long, short]


def test_paused_sequence_keeps_its_blocks_while_nobody_needs_them():
    """A slow reader's sequence is not scheduled, and continues later where it was."""
    scheduler = new_scheduler(8)
    slow = new_sequence(0, 5)
    scheduler.add(slow)
    scheduler.add(new_sequence(1, 5))
    run_step(scheduler)
    slow.paused = True
    assert run_step(scheduler) == {1: 1}
    assert (len(slow.block_table), slow.num_computed_tokens) == (2, 5)
    slow.paused = False
    assert scheduler.schedule(NO_LIMIT)[0] == (slow, 1)


def test_paused_sequence_gives_way_to_one_that_needs_its_blocks():
    """A slow reader does not make the sequences beside it wait, whether they run or are new."""
    scheduler = new_scheduler(4, block_size=4)
    slow, fast = new_sequence(0, 8, max_tokens=8), new_sequence(1, 8, max_tokens=8)
    scheduler.add(slow)
    scheduler.add(fast)
    run_step(scheduler)
    slow.paused = True
    assert run_step(scheduler) == {1: 1}
    assert (slow.num_preemptions, fast.num_preemptions) == (1, 0)
    assert scheduler.waiting == [slow]
    fast.paused = True
    scheduler.add(new_sequence(2, 12))
    assert run_step(scheduler) == {2: 12}


def test_paused_sequence_keeps_its_blocks_from_a_new_one_while_others_run():
    """Not computing a slow reader's tokens again is worth more than one more sequence in a step that has some."""
    scheduler = new_scheduler(4, block_size=4)
    slow, new = new_sequence(0, 8), new_sequence(2, 8)
    scheduler.add(slow)
    scheduler.add(new_sequence(1, 3, max_tokens=2))
    run_step(scheduler)
    slow.paused = True
    scheduler.add(new)
    assert run_step(scheduler) == {1: 1}
    assert (scheduler.waiting, slow.num_preemptions) == ([new], 0)


def test_of_paused_sequences_the_last_in_rank_gives_way_first():
    """As among those that run."""
    scheduler = new_scheduler(5, block_size=4)
    for number in range(3):
        scheduler.add(new_sequence(number, 4, max_tokens=50))
    run_step(scheduler)
    _, earlier, later = scheduler.running
    earlier.paused = later.paused = True
    while not scheduler.waiting:
        assert run_step(scheduler) == {0: 1}
    assert scheduler.waiting == [later]


def test_resumed_sequences_beyond_max_num_seqs_take_turns_by_rank():
    """When those that took the seats of paused ones must share them again, the first in rank run."""
    scheduler = new_scheduler(64, max_num_seqs=2)
    for number in range(4):
        scheduler.add(new_sequence(number, 1, max_tokens=50))
    assert run_step(scheduler) == {0: 1, 1: 1}
    first, second = scheduler.running
    first.paused = second.paused = True
    assert run_step(scheduler) == {2: 1, 3: 1}
    first.paused = second.paused = False
    assert scheduler.num_decodes == 2
    assert run_step(scheduler) == {0: 1, 1: 1}


def test_a_sequence_removed_before_update_is_passed_over():
    """A request cancelled while its step is computed takes nothing with it."""
    scheduler = new_scheduler(8)
    gone, stays = new_sequence(0, 6), new_sequence(1, 6)
    scheduler.add(gone)
    scheduler.add(stays)
    scheduled = scheduler.schedule(NO_LIMIT)
    scheduler.remove(gone)
    scheduler.update(scheduled)
    assert (gone.num_computed_tokens, stays.num_computed_tokens) == (0, 6)
    assert scheduler.block_manager.num_free == 6


def test_an_endless_stream_of_others_starves_nobody():
    """A long request of low priority ends although new ones with one shared prompt come in every step."""
    scheduler = new_scheduler(6, block_size=4, max_num_seqs=2)
    patient = new_sequence(0, 12, max_tokens=12, priority=1)
    scheduler.add(patient)
    for number in range(1, 200):
        scheduler.add(new_sequence(number, [5] * 9 + [number], max_tokens=3))
        run_step(scheduler, max_prompt_tokens=2)
        if patient not in everyone(scheduler):
            return
    raise AssertionError("it starved")


# ---- for how many tokens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_prompt_tokens", "share"), [(5, 5), (0, 1), (-3, 1), (100, 15)])
def test_prompts_get_so_many_tokens_beside_decodes(max_prompt_tokens, share):
    """The limit holds while somebody decodes, and leaves one token at least."""
    scheduler = new_scheduler(64, budget=16)
    scheduler.add(new_sequence(0, 1, max_tokens=50))
    run_step(scheduler)
    scheduler.add(new_sequence(1, 40))
    assert run_step(scheduler, max_prompt_tokens) == {0: 1, 1: share}


def test_prompts_get_the_whole_budget_when_nothing_decodes():
    """There is nobody whom a long step could hold up."""
    scheduler = new_scheduler(64, budget=16)
    scheduler.add(new_sequence(0, 40))
    assert run_step(scheduler, 3) == {0: 16}


def test_paused_decodes_do_not_limit_prompts():
    """A stream whose reader is slow is not held up by anything."""
    scheduler = new_scheduler(64, budget=16)
    slow = new_sequence(0, 1)
    scheduler.add(slow)
    run_step(scheduler)
    assert scheduler.num_decodes == 1
    slow.paused = True
    assert scheduler.num_decodes == 0
    scheduler.add(new_sequence(1, 40))
    assert run_step(scheduler, 3) == {1: 16}


def test_all_decodes_run_before_prompts_share_the_rest():
    """A prompt that is first in rank does not take the tokens of those that decode behind it."""
    scheduler = new_scheduler(64, budget=8)
    for number in range(1, 5):
        scheduler.add(new_sequence(number, 1, max_tokens=50))
    run_step(scheduler)
    scheduler.add(new_sequence(0, 40))
    assert scheduler.num_decodes == 4
    assert run_step(scheduler) == {0: 4, 1: 1, 2: 1, 3: 1, 4: 1}


def test_short_prompt_does_not_wait_behind_a_long_one():
    """Half of the prompt tokens are the first's, the rest goes to the shortest, then to the next."""
    scheduler = new_scheduler(64, budget=16)
    for number, size in enumerate([100, 50, 6]):
        scheduler.add(new_sequence(number, size))
    assert run_step(scheduler) == {0: 8, 1: 2, 2: 6}
    assert run_step(scheduler) == {0: 8, 1: 7, 2: 1}


def test_the_first_takes_all_when_it_is_the_shortest_too():
    """Prompts of one length are computed one after the other: the first is not delayed, the last is no later."""
    scheduler = new_scheduler(64, budget=16)
    for number in range(3):
        scheduler.add(new_sequence(number, 24))
    assert [run_step(scheduler) for _ in range(2)] == [{0: 16}, {0: 8, 1: 8}]


def test_max_chunk_limits_one_sequence_and_leaves_the_rest_to_others():
    """A ring that can take few side records holds up its own prompt only."""
    scheduler = new_scheduler(64, budget=16)
    limited, other = new_sequence(0, 10), new_sequence(1, 40)
    limited.max_chunk = 3
    scheduler.add(limited)
    scheduler.add(other)
    assert run_step(scheduler) == {0: 3, 1: 13}


def test_no_more_sequences_run_than_there_are_tokens_in_a_step():
    """With a budget of three tokens the fourth sequence waits, so each that runs can get one."""
    scheduler = new_scheduler(64, budget=3)
    for number in range(4):
        scheduler.add(new_sequence(number, 1))
    assert run_step(scheduler) == {0: 1, 1: 1, 2: 1}
    assert [sequence.ring for sequence in scheduler.waiting] == [3]


# ---- prefixes that are being computed ----------------------------------------------------------------------------


def test_many_requests_with_one_prompt_compute_it_once():
    """Sixteen requests that come together share the blocks of their prompt, and each computes its own end."""
    scheduler = new_scheduler(200, block_size=4, budget=32, max_num_seqs=16)
    sequences = [new_sequence(number, [5] * 100 + [50 + number, 7], max_tokens=3) for number in range(16)]
    computed = 0
    for sequence in sequences:
        scheduler.add(sequence)
    while everyone(scheduler):
        scheduled = scheduler.schedule(NO_LIMIT)
        computed += sum(num_tokens for _, num_tokens in scheduled)
        finish_step(scheduler, scheduled)
    assert computed == 100 + 16 * (2 + 2), "the prompt once; of each its end, and all but the last of its output"
    assert [sequence.num_cached_tokens for sequence in sequences] == [0, *[100] * 15]
    assert (scheduler.block_manager.prefix_queries, scheduler.block_manager.prefix_hits) == (16 * 102, 15 * 100)


def test_choices_of_one_prompt_wait_for_its_full_blocks_only():
    """A second choice runs as soon as all that it can share is there: its last token it always computes itself."""
    scheduler = new_scheduler(64, block_size=4, budget=8)
    for number in range(2):
        scheduler.add(new_sequence(number, [5] * 16, max_tokens=50))
    assert [run_step(scheduler) for _ in range(3)] == [{0: 8}, {0: 8}, {0: 1, 1: 4}]


def two_with_one_prompt(budget=8):
    """A scheduler with one sequence in the midst of its prompt, and another one held back for it."""
    scheduler = new_scheduler(64, block_size=4, budget=budget)
    producer, follower = new_sequence(0, [5] * 40), new_sequence(1, [5] * 40)
    scheduler.add(producer)
    scheduler.add(follower)
    assert run_step(scheduler) == {0: budget}
    assert scheduler.waiting == [follower]
    return scheduler, producer, follower


@pytest.mark.parametrize("invalid_kv", [False, True])
def test_held_back_sequence_goes_on_when_the_producer_ended(invalid_kv):
    """It takes over where the other stopped, or from the start if that was spoilt."""
    scheduler, producer, follower = two_with_one_prompt()
    scheduler.remove(producer, invalid_kv=invalid_kv)
    assert run_step(scheduler) == {1: 8}
    assert follower.num_cached_tokens == (0 if invalid_kv else 8)


def test_held_back_sequence_goes_on_when_the_producer_is_paused():
    """It does not wait for a slow reader's sequence, and a third one then waits for it."""
    scheduler, producer, follower = two_with_one_prompt()
    scheduler.add(new_sequence(2, [5] * 40))
    producer.paused = True
    assert run_step(scheduler) == {1: 8}
    assert follower.num_cached_tokens == 8
    producer.paused = False
    assert run_step(scheduler) == {0: 4, 1: 4}
    assert [sequence.ring for sequence in scheduler.waiting] == [2]
    scheduler.remove(producer)
    assert run_step(scheduler) == {1: 8}
    assert [sequence.ring for sequence in scheduler.waiting] == [2], "for the second, whatever becomes of the first"


def test_held_back_sequence_goes_on_when_the_producer_is_preempted():
    """Then it is first come, first served again: the producer before the one that waited for it."""
    scheduler = new_scheduler(8, block_size=4, budget=8)
    producer, follower = new_sequence(1, [5] * 24), new_sequence(2, [5] * 24)
    scheduler.add(new_sequence(0, 7, max_tokens=8))
    scheduler.add(producer)
    scheduler.add(follower)
    run_step(scheduler)
    run_step(scheduler)
    assert run_step(scheduler) == {0: 1}
    assert scheduler.waiting == [producer, follower]
    scheduler.remove(producer)
    assert run_all(scheduler, 20)


def test_an_urgent_sequence_does_not_wait_for_a_later_one():
    """It computes what the other computes too, rather than depend on whoever runs before that one."""
    scheduler, _, follower = two_with_one_prompt()
    scheduler.add(new_sequence(2, [5] * 40, priority=-1))
    assert run_step(scheduler) == {2: 8}
    assert scheduler.waiting == [follower], "the later one still waits, now for the urgent one"


def test_those_behind_a_held_back_sequence_may_run():
    """Another prompt does not wait for one that has nothing to do with it."""
    scheduler, *_ = two_with_one_prompt()
    scheduler.add(new_sequence(2, 4))
    assert run_step(scheduler) == {0: 4, 2: 4}


def test_nobody_overtakes_with_the_blocks_that_a_held_back_sequence_needs():
    """Of six blocks the producer has four; the one left over is what the held back one will need besides."""
    scheduler = new_scheduler(6, block_size=4, budget=8)
    scheduler.add(new_sequence(0, [5] * 15, max_tokens=1))
    scheduler.add(new_sequence(1, [5] * 15, max_tokens=1))
    run_step(scheduler)
    scheduler.add(new_sequence(2, 8))
    assert run_step(scheduler) == {0: 7}, "two blocks are free, but one of them is taken"
    assert run_step(scheduler) == {1: 3, 2: 5}


def test_blocks_that_are_coming_are_not_kept_free():
    """A held back sequence will find those of the producer, so one block is all that it keeps from others."""
    scheduler = new_scheduler(7, block_size=4, budget=8)
    for number, prompt in enumerate([[5] * 15, [5] * 15, [9] * 8]):
        scheduler.add(new_sequence(number, prompt))
    assert run_step(scheduler) == {0: 4, 2: 4}


def test_nobody_overtakes_with_the_seat_of_a_held_back_sequence():
    """Of two seats one is the producer's, and the other is kept."""
    scheduler = new_scheduler(64, block_size=4, budget=8, max_num_seqs=2)
    for number, prompt in enumerate([[5] * 40, [5] * 40, [9]]):
        scheduler.add(new_sequence(number, prompt))
    assert run_step(scheduler) == {0: 8}


def test_scheduling_needs_neither_torch_nor_numpy():
    """Importing the scheduler loads no array library."""
    code = (
        "import sys\n"
        "from rbee.engine.scheduling import block_manager, scheduler, sequence, step_cost\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scheduled_says_whether_it_samples():
    """Only the chunk that reaches the last token yields a new one."""
    sequence = new_sequence(0, 5)
    assert [Scheduled(sequence, size).samples for size in (1, 4, 5)] == [False, False, True]
