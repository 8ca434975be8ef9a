"""The scheduler and its blocks, against properties that must hold whatever is asked of them."""

from __future__ import annotations

import array
import subprocess
import sys

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rbee.engine.block_manager import BlockManager
from rbee.engine.scheduler import Scheduled, Scheduler
from rbee.engine.sequence import Sequence
from rbee.sampling_params import SamplingParams


def new_sequence(arrival: int, num_prompt_tokens: int, max_tokens: int = 4) -> Sequence:
    """A sequence of a given length."""
    return Sequence(
        request_id=str(arrival),
        ring=arrival,
        arrival=arrival,
        token_ids=array.array("I", range(1, num_prompt_tokens + 1)),
        sampling=SamplingParams(max_tokens=max_tokens),
    )


def new_scheduler(
    num_blocks: int, *, block_size: int = 4, max_num_seqs: int = 8, budget: int = 16, max_model_len: int | None = None
) -> Scheduler:
    """A scheduler over a pool of blocks; by default one sequence may take it all."""
    return Scheduler(
        BlockManager(num_blocks, block_size),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=max_model_len or num_blocks * block_size,
    )


def finish_step(scheduler: Scheduler, scheduled: list[Scheduled]) -> list[Sequence]:
    """What the core does after a step: append a token where one was sampled, remove what is done; the removed."""
    samplers = [entry.sequence for entry in scheduled if entry.samples]
    scheduler.update(scheduled)
    done = []
    for sequence in samplers:
        sequence.token_ids.append(7)
        if sequence.num_output_tokens == sequence.sampling.max_tokens:
            scheduler.remove(sequence)
            done.append(sequence)
    return done


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of arrivals, steps, aborts, pauses and resumes."""

    @initialize(
        num_blocks=st.integers(2, 12),
        block_size=st.integers(1, 5),
        max_num_seqs=st.integers(1, 5),
        budget=st.integers(1, 20),
    )
    def start(self, num_blocks: int, block_size: int, max_num_seqs: int, budget: int) -> None:
        """Begin with an empty scheduler of some shape."""
        self.scheduler = new_scheduler(num_blocks, block_size=block_size, max_num_seqs=max_num_seqs, budget=budget)
        self.max_model_len = num_blocks * block_size
        self.live: dict[int, Sequence] = {}
        self.arrivals = 0

    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        """A request that fits max_model_len arrives."""
        prompt = data.draw(st.integers(1, self.max_model_len - 1))
        max_tokens = data.draw(st.integers(1, self.max_model_len - prompt))
        sequence = new_sequence(self.arrivals, prompt, max_tokens)
        self.arrivals += 1
        self.live[sequence.arrival] = sequence
        self.scheduler.add(sequence)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """A client goes away."""
        self.scheduler.remove(self.live.pop(data.draw(st.sampled_from(sorted(self.live)))))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def pause_or_resume(self, data: st.DataObject) -> None:
        """A reader stops, or reads again."""
        sequence = self.live[data.draw(st.sampled_from(sorted(self.live)))]
        sequence.paused = not sequence.paused

    @rule()
    def step(self) -> None:
        """A step obeys all limits, skips paused sequences, and serves somebody if anybody can be served."""
        before = list(self.scheduler.running)
        scheduled = self.scheduler.schedule()
        sequences = [entry.sequence for entry in scheduled]
        assert len(set(map(id, sequences))) == len(sequences) <= self.scheduler.max_num_seqs
        assert sum(entry.num_tokens for entry in scheduled) <= self.scheduler.max_num_batched_tokens
        for sequence, num_tokens in scheduled:
            assert not sequence.paused
            assert 1 <= num_tokens <= sequence.num_uncomputed_tokens
            capacity = len(sequence.block_table) * self.scheduler.block_manager.block_size
            assert capacity >= sequence.num_computed_tokens + num_tokens
        ready = [sequence for sequence in before if not sequence.paused]
        if ready:
            assert sequences[0] is ready[0], "the oldest running sequence goes first"
        elif any(not sequence.paused for sequence in self.live.values()):
            assert scheduled, "somebody could run"
        for sequence in finish_step(self.scheduler, scheduled):
            del self.live[sequence.arrival]

    @invariant()
    def every_block_has_one_owner(self) -> None:
        """Free blocks and held blocks together are all blocks, each once."""
        if not hasattr(self, "scheduler"):
            return
        manager = self.scheduler.block_manager
        held = [block for sequence in self.live.values() for block in sequence.block_table]
        assert sorted(held + manager._free) == list(range(manager.num_blocks))

    @invariant()
    def queues_are_in_order(self) -> None:
        """Each live sequence is in exactly one queue, both are in order of arrival, and only running ones hold KV."""
        if not hasattr(self, "scheduler"):
            return
        for queue in (self.scheduler.running, self.scheduler.waiting):
            arrivals = [sequence.arrival for sequence in queue]
            assert arrivals == sorted(arrivals)
        assert sorted(sequence.arrival for sequence in self.scheduler) == sorted(self.live)
        assert all(sequence.block_table for sequence in self.scheduler.running)
        assert not any(sequence.block_table or sequence.num_computed_tokens for sequence in self.scheduler.waiting)

    def teardown(self) -> None:
        """Once every reader reads, every request ends, with all of its tokens."""
        if not hasattr(self, "scheduler"):
            return
        for sequence in self.live.values():
            sequence.paused = False
        while self.live:
            self.step()  # asserts that it serves the oldest, so this comes to an end
        assert self.scheduler.block_manager.num_free == self.scheduler.block_manager.num_blocks


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_long_prompt_is_computed_in_chunks_beside_a_decoding_sequence():
    """A running sequence gets its token in every step while a long prompt takes what is left of the budget."""
    scheduler = new_scheduler(32, budget=16)
    short, long = new_sequence(0, 3, max_tokens=50), new_sequence(1, 40)
    scheduler.add(short)
    finish_step(scheduler, scheduler.schedule())
    scheduler.add(long)
    chunks = []
    for _ in range(3):
        scheduled = scheduler.schedule()
        chunks.append([(entry.sequence.arrival, entry.num_tokens, entry.samples) for entry in scheduled])
        finish_step(scheduler, scheduled)
    assert chunks == [
        [(0, 1, True), (1, 15, False)],
        [(0, 1, True), (1, 15, False)],
        [(0, 1, True), (1, 10, True)],
    ]


def test_newest_is_preempted_and_keeps_its_tokens():
    """When blocks run out the newest running sequence goes back to waiting with its output, and is computed again."""
    scheduler = new_scheduler(4, block_size=4)
    old, new = new_sequence(0, 8, max_tokens=8), new_sequence(1, 6, max_tokens=8)
    scheduler.add(old)
    scheduler.add(new)
    finish_step(scheduler, scheduler.schedule())
    assert [entry.sequence for entry in scheduler.schedule()] == [old]
    assert scheduler.waiting == [new]
    assert (new.num_computed_tokens, new.num_output_tokens, len(new.block_table)) == (0, 1, 0)
    assert scheduler.num_preemptions == 1


def test_waiting_sequences_are_admitted_in_order_of_arrival():
    """A short request does not overtake a long one that waits for blocks."""
    scheduler = new_scheduler(4, block_size=4)
    running, long, short = new_sequence(0, 8, max_tokens=3), new_sequence(1, 12), new_sequence(2, 1)
    scheduler.add(running)
    finish_step(scheduler, scheduler.schedule())
    scheduler.add(long)
    scheduler.add(short)
    assert [entry.sequence for entry in scheduler.schedule()] == [running]
    assert scheduler.waiting == [long, short]


def test_paused_sequence_keeps_its_blocks_while_nobody_needs_them():
    """A slow reader's sequence is not scheduled, and continues later where it was."""
    scheduler = new_scheduler(8)
    slow, fast = new_sequence(0, 5), new_sequence(1, 5)
    scheduler.add(slow)
    scheduler.add(fast)
    finish_step(scheduler, scheduler.schedule())
    slow.paused = True
    assert [entry.sequence for entry in scheduler.schedule()] == [fast]
    assert (len(slow.block_table), slow.num_computed_tokens) == (2, 5)
    slow.paused = False
    assert scheduler.schedule()[0] == (slow, 1)


def test_paused_sequence_gives_way_to_one_that_needs_its_blocks():
    """A slow reader does not make the sequences beside it wait, whether they run or are new."""
    scheduler = new_scheduler(4, block_size=4)
    slow, fast = new_sequence(0, 8, max_tokens=8), new_sequence(1, 8, max_tokens=8)
    scheduler.add(slow)
    scheduler.add(fast)
    finish_step(scheduler, scheduler.schedule())
    slow.paused = True
    assert scheduler.schedule() == [(fast, 1)], "without having to compute anything again"
    assert scheduler.waiting == [slow]
    fast.paused = True
    new = new_sequence(2, 12)
    scheduler.add(new)
    assert [entry.sequence for entry in scheduler.schedule()] == [new]


def test_scheduling_needs_neither_torch_nor_numpy():
    """Importing the scheduler loads no array library."""
    code = (
        "import sys, rbee.engine.scheduler, rbee.engine.block_manager, rbee.engine.sequence;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
