"""Who runs in a step, and for how many tokens."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rbee.engine.scheduling.scheduler import Scheduled
from tests.engine.scheduling.scheduling_parts import (
    NO_LIMIT,
    everyone,
    new_scheduler,
    new_sequence,
    run_step,
)

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
